import AdaKVCore
import AdaKVCoreML
import CoreML
import Foundation
import XCTest

/// Xcode's own measurements of a step. The artifact's folder is in the environment:
///
///     ADAKV_ARTIFACT=../artifacts/smollm2-135m-instruct-ios swift test -c release --filter AdaKVBenchmarks
final class DecodeBenchmarks: XCTestCase {
  private static let depth = 256
  private var model: LanguageModel!

  override func setUp() async throws {
    guard let path = ProcessInfo.processInfo.environment["ADAKV_ARTIFACT"] else {
      throw XCTSkip("set ADAKV_ARTIFACT to a folder that python export.py --target ios wrote")
    }
    let artifact = try Artifact(folder: URL(filePath: path))
    model = try await LanguageModel(artifact: artifact, computeUnits: .cpuAndNeuralEngine)
  }

  func testDecodeAtADepth() throws {
    try fill()
    measure(metrics: [XCTClockMetric(), XCTCPUMetric(), XCTMemoryMetric()]) {
      XCTAssertNoThrow(try model.step([1]))
    }
  }

  func testPrefillOfAChunk() throws {
    let chunk = [Int32](repeating: 1, count: model.chunk)
    measure(metrics: [XCTClockMetric(), XCTCPUMetric()]) {
      model.reset()
      XCTAssertNoThrow(try model.step(chunk))
    }
  }

  private func fill() throws {
    let depth = min(Self.depth, model.context / 2)
    _ = try model.append((0..<depth).map { Int32($0 % 64) + 1 })
  }
}
