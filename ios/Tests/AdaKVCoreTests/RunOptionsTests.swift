import XCTest

@testable import AdaKVCore

final class RunOptionsTests: XCTestCase {
  private func parse(_ words: String) throws -> RunOptions {
    try RunOptions(words.split(separator: " ").map(String.init)) { path in
      guard path == "in/tokens" else { throw AdaKVError("cannot read \(path)") }
      return "1 2,3\n4"
    }
  }

  func testTheHarnessWords() throws {
    let bench = try parse("--artifact a --tokens-file in/tokens --bench --pp 128 --tg 0 --depth 16 --threads 2")
    XCTAssertEqual(bench.command, .bench(BenchmarkTest(pp: 128, tg: 0, depth: 16)))
    XCTAssertEqual(bench.tokens, [1, 2, 3, 4])
    XCTAssertEqual(bench.units, .cpuAndNeuralEngine)
    let probe = try parse("--artifact a --tokens-file in/tokens --force 2 --logits out/logits.f32 --states out/states")
    XCTAssertEqual(probe.command, .force(2, logits: "out/logits.f32", states: "out/states"))
  }

  func testGeneration() throws {
    let options = try parse("--artifact a --tokens 5 --max-new-tokens 3 --temperature 0.5 --seed 4 --units all")
    XCTAssertEqual(options.command, .generate(limit: 3, temperature: 0.5, seed: 4))
    XCTAssertEqual(options.units, .all)
    XCTAssertTrue(options.usePrefill)
    XCTAssertFalse(try parse("--artifact a --tokens 5 --no-prefill").usePrefill)
  }

  func testEveryMistakeIsOneLine() {
    let mistakes = [
      "": "--artifact is missing",
      "--artifact": "--artifact needs a value",
      "--artifact a": "the prompt is empty",
      "--artifact a --tokens x": "'x' is no token id",
      "--artifact a --tokens -1": "'-1' is no token id",
      "--artifact a --tokens-file none": "cannot read none",
      "--artifact a --tokens 1 --bench": "--bench measures nothing",
      "--artifact a --tokens 1 --bench --pp -4": "--pp takes an integer of at least 0",
      "--artifact a --tokens 1 --force 1": "--force needs --logits",
      "--artifact a --tokens 1 --units gpu": "unknown --units gpu",
      "--artifact a --tokens 1 --cpu-mask f0": "leave --cpu-mask out",
      "--artifact a --tokens 1 --temperature -1": "--temperature takes a number",
      "--artifact a --tokens 1 --what": "unknown option --what",
    ]
    for (words, expected) in mistakes {
      XCTAssertThrowsError(try parse(words), words) { error in
        XCTAssertTrue("\(error)".contains(expected), "\(words): \(error)")
        XCTAssertFalse("\(error)".contains("\n"))
      }
    }
  }
}
