import XCTest

@testable import AdaKVCore

final class SamplingTests: XCTestCase {
  private struct Choice: Decodable {
    let logits: [Float]
    let temperature: Double
    let unit: Double
    let token: Int32
  }

  private struct Summary: Decodable {
    let samples: [Double]
    let minimum, low, median, high: Double
  }

  func testPicksByTheCumulatedSoftmax() throws {
    for choice in try Fixtures.decode([Choice].self, "sampling.json") {
      let token = Sampler.pick(choice.logits, temperature: choice.temperature, at: choice.unit)
      XCTAssertEqual(token, choice.token, "\(choice)")
    }
  }

  func testGreedyTakesTheFirstOfTheLargest() {
    XCTAssertEqual(Sampler.greedy([0, 3, 1, 3]), 1)
    var sampler = Sampler()
    XCTAssertEqual(sampler.pick([0, 3, 1, 3]), 1)
  }

  func testASeedRepeatsAndIsUniform() {
    var first = SplitMix64(seed: 7)
    var second = SplitMix64(seed: 7)
    let units = (0..<4096).map { _ in first.nextUnit() }
    XCTAssertEqual(units, (0..<4096).map { _ in second.nextUnit() })
    XCTAssertTrue(units.allSatisfy { (0..<1).contains($0) })
    XCTAssertEqual(units.reduce(0, +) / 4096, 0.5, accuracy: 0.02)
    var zero = SplitMix64(seed: 0)
    XCTAssertEqual(zero.next(), 0xE220_A839_7B1D_CDAF)  // as published with the algorithm
  }

  func testStatisticsAreNumpys() throws {
    for summary in try Fixtures.decode([Summary].self, "statistics.json") {
      let ours = try XCTUnwrap(Statistics(summary.samples))
      XCTAssertEqual(ours.minimum, summary.minimum)
      XCTAssertEqual(ours.low, summary.low, accuracy: 1e-9)
      XCTAssertEqual(ours.median, summary.median, accuracy: 1e-9)
      XCTAssertEqual(ours.high, summary.high, accuracy: 1e-9)
    }
    XCTAssertNil(Statistics([]))
  }

  func testASummaryForPeople() {
    var times = BenchmarkTimes()
    XCTAssertEqual(times.summary, "")
    times.decodeNs = [9_000_000, 9_500_000, 10_000_000]
    XCTAssertEqual(times.summary, "decode: 9.50 ms a token, 10th to 90th percentile 9.10 to 9.90")
    times.prefillNs = [8_000_000]
    times.prefillTokens = [8]
    XCTAssertTrue(times.summary.hasPrefix("prefill: 1.00 ms a token"))
  }
}
