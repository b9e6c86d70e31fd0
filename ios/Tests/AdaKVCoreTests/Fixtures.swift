import Foundation
import XCTest

@testable import AdaKVCore

/// The test vectors that `python -m device_tests.coreml.swift_fixtures` writes.
enum Fixtures {
  static func data(_ name: String) throws -> Data {
    let folder = try XCTUnwrap(Bundle.module.url(forResource: "Fixtures", withExtension: nil))
    return try Data(contentsOf: folder.appendingPathComponent(name))
  }

  static func decode<T: Decodable>(_ type: T.Type, _ name: String) throws -> T {
    try JSONDecoder().decode(type, from: data(name))
  }

  static func artifact() throws -> Artifact {
    try Artifact(folder: URL(fileURLWithPath: "/somewhere"), manifest: data("manifest.json"))
  }
}
