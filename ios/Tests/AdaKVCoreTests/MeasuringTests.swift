import Foundation
import XCTest

@testable import AdaKVCore

/// Likes the token after the last one it was fed; every step costs as many clock ticks as it has tokens.
private final class Counter: TokenModel {
  let context = 30
  let chunk = 4
  let vocabularySize = 10
  private(set) var position = 0
  private(set) var sizes: [Int] = []
  private(set) var fed: [Int32] = []
  private(set) var clock: UInt64 = 0
  let tokensByTier = [0]

  func reset() {
    position = 0
    sizes = []
    fed = []
  }

  func step(_ tokens: [Int32]) throws -> [Float] {
    XCTAssertTrue([1, chunk].contains(tokens.count))
    XCTAssertLessThanOrEqual(position + tokens.count, context)
    position += tokens.count
    sizes.append(tokens.count)
    fed += tokens
    clock += UInt64(tokens.count)
    let next = Int(tokens.last! + 1) % vocabularySize
    return (0..<vocabularySize).map { $0 == next ? 1 : 0 }
  }
}

final class MeasuringTests: XCTestCase {
  func testABenchmarkTimesEveryStepAfterItsDepth() throws {
    let model = Counter()
    let chunk = model.chunk
    let test = BenchmarkTest(pp: chunk + 1, tg: 3, depth: 2 * chunk)
    let times = try model.benchmark(test, tokens: [1, 2, 3]) { model.clock }
    XCTAssertEqual(times.coldStepNs, UInt64(chunk))
    XCTAssertEqual(times.fillNs, UInt64(2 * chunk))
    XCTAssertEqual(times.prefillTokens, [chunk, 1])
    XCTAssertEqual(times.prefillNs, [UInt64(chunk), 1])
    XCTAssertEqual(times.decodeNs, [1, 1, 1])
    XCTAssertEqual(times.firstTokenNs, UInt64(chunk + 1))
    XCTAssertEqual(times.startedNs.prefill - times.startedNs.fill, times.fillNs)
    XCTAssertEqual(times.startedNs.decode - times.startedNs.prefill, times.firstTokenNs)
    XCTAssertEqual(times.finishReason, .done)
    XCTAssertEqual(model.position, 3 * chunk + 4, "the warm-up is not in the cache")
    XCTAssertEqual(model.fed, (0..<model.position).map { Int32($0 % 3) + 1 }, "tokens are fed in turn")
  }

  func testAFullContextEndsATest() throws {
    let model = Counter()
    let test = BenchmarkTest(pp: 0, tg: 5, depth: model.context - 2)
    let times = try model.benchmark(test, tokens: [1]) { model.clock }
    XCTAssertEqual(times.decodeNs.count, 2)
    XCTAssertNil(times.firstTokenNs)
    XCTAssertEqual(times.finishReason, .context)
  }

  func testTheProbeKeepsTheLogitsOfTheForcedTokens() throws {
    let model = Counter()
    let rows = try model.force([4, 5, 6, 8], last: 2)
    XCTAssertEqual(rows.map(Sampler.greedy), [6, 7, 9])
    XCTAssertEqual(littleEndian(rows).count, 4 * 3 * model.vocabularySize)
    XCTAssertEqual(littleEndian([[1]]), Data([0, 0, 0x80, 0x3F]))
    XCTAssertThrowsError(try model.force([4, 5], last: 2))
  }

  func testGenerationEndsForEveryReason() throws {
    let model = Counter()
    var made: [Int32] = []
    func run(limit: Int, endTokens: Set<Int32> = [], keep: Int = .max) throws -> FinishReason {
      model.reset()
      made = []
      var sampler = Sampler()
      return try model.generate([1], limit: limit, endTokens: endTokens, sampler: &sampler) { token in
        made.append(token)
        return made.count < keep
      }
    }
    XCTAssertEqual(try run(limit: 3), .length)
    XCTAssertEqual(made, [2, 3, 4])
    XCTAssertEqual(try run(limit: 9, endTokens: [5]), .eos)
    XCTAssertEqual(made, [2, 3, 4])
    XCTAssertEqual(try run(limit: 9, keep: 2), .stopped)
    XCTAssertEqual(try run(limit: 1000), .context)
    XCTAssertEqual(made.count, model.context)
  }

  func testAPromptThatDoesNotFitIsRefusedBeforeItIsFed() throws {
    let model = Counter()
    let long = [Int32](repeating: 1, count: model.context + 1)
    XCTAssertThrowsError(try model.append(long)) { XCTAssertTrue("\($0)".contains("context full")) }
    XCTAssertEqual(model.position, 0)
  }

  func testTheReportHasTheFieldsOfTheSchema() throws {
    let model = Counter()
    let test = BenchmarkTest(pp: 0, tg: 2, depth: 0)
    let times = try model.benchmark(test, tokens: [1]) { model.clock }
    let memory = RunReport.Memory(loaded: MemoryUse(rss: 1), end: MemoryUse(rss: 2), peak: 3)
    let report = RunReport(
      runner: RunReport.Runner(units: "cpuOnly", platform: "test"), loadNs: 5, memory: memory,
      cache: RunReport.Cache(bytes: 7, tokensByTier: [1, 0], position: 2), test: test, times: times)
    let text = String(decoding: try report.json(), as: UTF8.self)
    XCTAssertFalse(text.contains("\n"))
    let fields = try XCTUnwrap(JSONSerialization.jsonObject(with: Data(text.utf8)) as? [String: Any])
    XCTAssertEqual(
      Set(fields.keys),
      [
        "schema", "runner", "test", "load_ns", "cold_step_ns", "fill_ns", "prefill_ns", "prefill_tokens", "decode_ns",
        "first_token_ns", "started_ns", "clocks_khz", "memory", "cache", "finish_reason",
      ])
    let started = try XCTUnwrap(fields["started_ns"] as? [String: Int])
    XCTAssertEqual(Set(started.keys), ["load", "warm_up", "fill", "prefill", "decode"])
    let known = try XCTUnwrap((fields["memory"] as? [String: Any])?["loaded"] as? [String: Any])
    XCTAssertEqual(known["rss"] as? Int, 1)
    XCTAssertTrue(known["file"] is NSNull)
    XCTAssertEqual(fields["schema"] as? String, "adakv-run-1")
    XCTAssertTrue(fields["first_token_ns"] is NSNull)
    let runner = try XCTUnwrap(fields["runner"] as? [String: Any])
    XCTAssertTrue(runner["cpu_mask"] is NSNull)
    XCTAssertEqual(runner["isa"] as? String, "coreml-cpuOnly")
    let probe = RunReport(
      runner: report.runner, loadNs: 5, memory: memory, cache: report.cache, rows: [[1, 2, 3], [4, 5, 6]])
    let logits = try XCTUnwrap(
      (JSONSerialization.jsonObject(with: probe.json()) as? [String: Any])?["logits"] as? [String: Int])
    XCTAssertEqual(logits, ["steps": 2, "vocabulary": 3])
  }
}
