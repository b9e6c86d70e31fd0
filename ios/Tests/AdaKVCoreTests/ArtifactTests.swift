import Foundation
import XCTest

@testable import AdaKVCore

final class ArtifactTests: XCTestCase {
  func testReadsTheManifest() throws {
    let artifact = try Fixtures.artifact()
    XCTAssertEqual(artifact.package.lastPathComponent, "Small.mlpackage")
    XCTAssertEqual(artifact.plan.context, 60)
    XCTAssertFalse(artifact.plan.tiers.isEmpty)
    XCTAssertGreaterThan(artifact.states.bytesAllocated, 0)
    XCTAssertEqual(artifact.inputs?.tiers.count, artifact.plan.tiers.count)
  }

  func testSaysWhatIsWrongWithAFolder() {
    XCTAssertThrowsError(try Artifact(folder: URL(fileURLWithPath: "/nowhere"))) { error in
      XCTAssertTrue("\(error)".contains("make one with python export.py --target ios"))
    }
    let android = Data(#"{"format": 2, "program": "model.pte"}"#.utf8)
    XCTAssertThrowsError(try Artifact(folder: URL(fileURLWithPath: "/x"), manifest: android)) { error in
      XCTAssertTrue("\(error)".contains("is not a Core ML artifact"))
    }
  }

  func testRefusesOtherFormatsAndMissingArrays() throws {
    var manifest = try XCTUnwrap(
      JSONSerialization.jsonObject(with: Fixtures.data("manifest.json")) as? [String: Any])
    var inputs = try XCTUnwrap(manifest["core_ml_inputs"] as? [String: Any])
    inputs["arrays"] = [String: Any]()
    manifest["core_ml_inputs"] = inputs
    XCTAssertThrowsError(try read(manifest)) { XCTAssertTrue("\($0)".contains("describes no array")) }
    manifest["format"] = 1
    XCTAssertThrowsError(try read(manifest)) { XCTAssertTrue("\($0)".contains("has format 1")) }
  }

  func testTheLastRowOfAPlanHasTheTokensOfEachTier() throws {
    let plan = try Fixtures.artifact().plan
    XCTAssertEqual(plan.tokensByTier([2, 0, 5, 6]), [5, 6])
    XCTAssertEqual(plan.tokensByTier([]), plan.tiers.map { _ in 0 })
  }

  private func read(_ manifest: [String: Any]) throws -> Artifact {
    let data = try JSONSerialization.data(withJSONObject: manifest)
    return try Artifact(folder: URL(fileURLWithPath: "/x"), manifest: data)
  }
}
