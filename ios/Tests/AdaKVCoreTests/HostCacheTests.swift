import Foundation
import XCTest

@testable import AdaKVCore

final class HostCacheTests: XCTestCase {
  private struct Vectors: Decodable {
    let steps: [Int]
    let plan: [[Int32]]
    let bytes: Int
    let arrays: [String: Data]
  }

  /// What the test vectors let a step return: `new_bytes` of device_tests/coreml/swift_fixtures.py.
  private struct Outputs: StepColumns {
    let position: Int
    let inputs: CacheInputs

    func column(_ index: Int, of output: String) throws -> [UInt8] {
      let outputs = inputs.arrays.values.sorted { $0.new < $1.new }
      let array = try XCTUnwrap(outputs.firstIndex { $0.new == output })
      let count = outputs[array].shape[1] * outputs[array].dtype.size
      let first = 31 * array + 7 * (position + index) + 1
      return (0..<count).map { byte in UInt8((first + 3 * byte) % 251) }
    }
  }

  func testHoldsTheSameBytesAsThePythonProcedure() throws {
    let vectors = try Fixtures.decode(Vectors.self, "host_cache.json")
    let inputs = try XCTUnwrap(Fixtures.artifact().inputs)
    let cache = HostCache(inputs)
    var position = 0
    for size in vectors.steps {
      let plan = Array(vectors.plan[position..<position + size])
      try cache.write(position: position, plan: plan, outputs: Outputs(position: position, inputs: inputs))
      position += size
    }
    XCTAssertEqual(cache.bytes, vectors.bytes)
    XCTAssertEqual(Set(cache.arrays.keys), Set(vectors.arrays.keys))
    for (name, expected) in vectors.arrays {
      let array = try XCTUnwrap(cache.arrays[name])
      XCTAssertEqual(Data(array.bytes), expected, name)
    }
  }

  func testTheVectorsUseEveryTierWithRoom() throws {
    let vectors = try Fixtures.decode(Vectors.self, "host_cache.json")
    let tiers = Set(vectors.plan.map { $0[0] })
    let capacities = try Fixtures.artifact().plan.tiers.map(\.capacity)
    XCTAssertEqual(tiers, Set((-1..<capacities.count).filter { $0 < 0 || capacities[$0] > 0 }.map(Int32.init)))
  }
}
