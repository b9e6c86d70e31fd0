import Foundation

/// The words after the runner's name. The harness passes the same ones to every runner: docs/bench-schema.md.
public struct RunOptions: Equatable {
  public enum Command: Equatable {
    case generate(limit: Int, temperature: Double, seed: UInt64)
    case bench(BenchmarkTest)
    /// Teacher-forced steps, the file for their logits, the folder for the cache's buffers.
    case force(Int, logits: String, states: String?)
  }

  public let artifact: String
  public let tokens: [Int32]
  public let units: ComputeUnits
  public let usePrefill: Bool
  public let command: Command

  public enum ComputeUnits: String, CaseIterable, Sendable {
    case cpuAndNeuralEngine, cpuAndGPU, cpuOnly, all
  }

  public static let usage = """
    usage: adakv-run --artifact FOLDER (--tokens 1,2,3 | --tokens-file FILE) [options]
      --max-new-tokens N   stop after N tokens (64)
      --temperature T      0 takes the likeliest token (0)
      --seed N             of the sampler, with a temperature above 0 (0)
      --units NAME         cpuAndNeuralEngine, cpuAndGPU, cpuOnly or all (cpuAndNeuralEngine)
      --no-prefill         feed the prompt token by token
      --threads N          has no effect: Core ML chooses its threads itself
    measuring, one JSON object on the last line:
      --bench --pp N --tg N --depth N    time N tokens of prefill, then N of decode, with N in the cache before
      --force K --logits FILE            prefill all but K tokens, feed these one by one, write their logits
      --states FOLDER                    with --force, also write the cache's buffers
    """

  /// arguments: without the program's name. read: content of a file of tokens.
  public init(_ arguments: [String], read: (String) throws -> String = RunOptions.contents) throws {
    var values: [String: String] = [:]
    var switches: Set<String> = []
    var rest = arguments[...]
    while let word = rest.popFirst() {
      if Self.switchNames.contains(word) {
        switches.insert(word)
      } else if Self.valueNames.contains(word) {
        guard let value = rest.popFirst() else { throw AdaKVError("\(word) needs a value: see adakv-run --help") }
        values[word] = value
      } else {
        throw AdaKVError(Self.refused[word] ?? "unknown option \(word): see adakv-run --help")
      }
    }

    func integer(_ name: String, _ normal: Int, least: Int) throws -> Int {
      guard let text = values[name] else { return normal }
      guard let value = Int(text), value >= least else {
        throw AdaKVError("\(name) takes an integer of at least \(least), not '\(text)'")
      }
      return value
    }

    guard let artifact = values["--artifact"] else { throw AdaKVError("--artifact is missing: see adakv-run --help") }
    self.artifact = artifact
    let list = try values["--tokens"] ?? values["--tokens-file"].map(read) ?? ""
    tokens = try Self.parseTokens(list)
    guard !tokens.isEmpty else { throw AdaKVError("the prompt is empty: pass --tokens or --tokens-file") }
    let name = values["--units"] ?? ComputeUnits.cpuAndNeuralEngine.rawValue
    guard let units = ComputeUnits(rawValue: name) else {
      let known = ComputeUnits.allCases.map(\.rawValue).joined(separator: ", ")
      throw AdaKVError("unknown --units \(name): one of \(known)")
    }
    self.units = units
    usePrefill = !switches.contains("--no-prefill")

    if switches.contains("--bench") {
      let test = BenchmarkTest(
        pp: try integer("--pp", 0, least: 0), tg: try integer("--tg", 0, least: 0),
        depth: try integer("--depth", 0, least: 0))
      guard test.pp + test.tg > 0 else { throw AdaKVError("--bench measures nothing: pass --pp or --tg") }
      command = .bench(test)
    } else if values["--force"] != nil {
      guard let logits = values["--logits"] else { throw AdaKVError("--force needs --logits FILE") }
      command = .force(try integer("--force", 1, least: 1), logits: logits, states: values["--states"])
    } else {
      let text = values["--temperature"] ?? "0"
      guard let temperature = Double(text), temperature >= 0, temperature.isFinite else {
        throw AdaKVError("--temperature takes a number of at least 0, not '\(text)'")
      }
      command = .generate(
        limit: try integer("--max-new-tokens", 64, least: 1), temperature: temperature,
        seed: UInt64(try integer("--seed", 0, least: 0)))
    }
  }

  private static let switchNames: Set = ["--bench", "--no-prefill"]
  private static let valueNames: Set = [
    "--artifact", "--tokens", "--tokens-file", "--units", "--max-new-tokens", "--temperature", "--seed", "--pp", "--tg",
    "--depth", "--force", "--logits", "--states", "--threads",
  ]
  private static let refused = ["--cpu-mask": "the system chooses the cores: leave --cpu-mask out"]

  /// Token ids separated by commas or white space.
  static func parseTokens(_ text: String) throws -> [Int32] {
    try text.split { $0 == "," || $0.isWhitespace }.map { word in
      guard let token = Int32(word), token >= 0 else { throw AdaKVError("'\(word)' is no token id: see --tokens") }
      return token
    }
  }

  public static func contents(_ path: String) throws -> String {
    do {
      return try String(contentsOfFile: path, encoding: .utf8)
    } catch {
      throw AdaKVError("cannot read \(path): does the file exist?")
    }
  }
}
