// adakv-run: feeds token ids to a Core ML artifact and prints one JSON object a line.
//
//   echo '[1, 4093, 198]' | swift run -c release adakv-run --artifact artifacts/smollm2-135m-instruct-ios
//
// Lines: {"token": id} for each new token, then {"summary": {...}} with times in milliseconds. With --logits FILE the
// predictions after every token are written as raw little-endian fp16 [tokens, vocabulary].

import AdaKV
import CoreML
import Foundation

struct Options {
  var artifact = ""
  var maxNewTokens = 64
  var units = "cpuAndNeuralEngine"
  var prefill = true
  var logits: String?

  static let usage = """
    usage: adakv-run --artifact FOLDER [--max-new-tokens N] [--units cpuAndNeuralEngine|cpuAndGPU|cpuOnly|all]
                     [--no-prefill] [--logits FILE]      (token ids as a JSON array on standard input)
    """

  init(_ arguments: [String]) throws {
    var rest = arguments[...]
    while let option = rest.popFirst() {
      func value() throws -> String {
        guard let next = rest.popFirst() else { throw AdaKVError("\(option) needs a value\n\(Options.usage)") }
        return next
      }
      switch option {
      case "--artifact": artifact = try value()
      case "--max-new-tokens":
        guard let n = Int(try value()), n >= 1 else { throw AdaKVError("--max-new-tokens must be at least 1") }
        maxNewTokens = n
      case "--units": units = try value()
      case "--no-prefill": prefill = false
      case "--logits": logits = try value()
      default: throw AdaKVError("unknown option \(option)\n\(Options.usage)")
      }
    }
    guard !artifact.isEmpty else { throw AdaKVError(Options.usage) }
  }

  func computeUnits() throws -> MLComputeUnits {
    switch units {
    case "cpuAndNeuralEngine": return .cpuAndNeuralEngine
    case "cpuAndGPU": return .cpuAndGPU
    case "cpuOnly": return .cpuOnly
    case "all": return .all
    default: throw AdaKVError("unknown --units \(units)\n\(Options.usage)")
    }
  }
}

func emit(_ object: [String: Any]) throws {
  let data = try JSONSerialization.data(withJSONObject: object, options: [.sortedKeys])
  FileHandle.standardOutput.write(data + Data([0x0A]))
}

func milliseconds(_ duration: Duration) -> Double {
  Double(duration.components.seconds) * 1e3 + Double(duration.components.attoseconds) / 1e15
}

func run() async throws {
  let options = try Options(Array(CommandLine.arguments.dropFirst()))
  let input = FileHandle.standardInput.readDataToEndOfFile()
  guard let prompt = try? JSONDecoder().decode([Int32].self, from: input), !prompt.isEmpty else {
    throw AdaKVError("standard input must be a JSON array of token ids")
  }
  let artifact = try Artifact(folder: URL(filePath: options.artifact))
  guard prompt.count <= artifact.context else {
    throw AdaKVError("the prompt has \(prompt.count) tokens and the package holds \(artifact.context)")
  }
  let clock = ContinuousClock()
  let loading = clock.now
  let model = try await LanguageModel(
    artifact: artifact, computeUnits: try options.computeUnits(), usePrefill: options.prefill)
  let loaded = clock.now
  var raw = Data()
  var lastPlan: [Int32] = []
  func record(_ step: Step) {
    lastPlan = step.plan.last ?? []
    guard options.logits != nil else { return }
    step.logits.withUnsafeBytes { raw.append(contentsOf: $0) }
  }
  var step = try model.append(prompt) { _, step in record(step) }
  let prefilled = clock.now
  var new: [Int32] = []
  var times: [Double] = []
  while new.count < options.maxNewTokens {
    let token = greedy(step.logits, vocabulary: artifact.vocabularySize)
    if artifact.endTokens.contains(token) { break }
    new.append(token)
    try emit(["token": Int(token)])
    if new.count == options.maxNewTokens || model.position == artifact.context { break }
    let started = clock.now
    step = try model.append([token])
    times.append(milliseconds(clock.now - started))
    record(step)
  }
  if let path = options.logits { try raw.write(to: URL(filePath: path)) }
  times.sort()
  try emit([
    "summary": [
      "prompt_tokens": prompt.count, "new_tokens": new.count, "units": options.units,
      "load_ms": milliseconds(loaded - loading), "prefill_ms": milliseconds(prefilled - loaded),
      "decode_ms_median": times.isEmpty ? 0 : times[times.count / 2],
      "decode_ms_minimum": times.first ?? 0,
      "tier_counts": lastPlan.dropFirst(2).map(Int.init),
    ]
  ])
}

do {
  try await run()
} catch {
  FileHandle.standardError.write(Data("error: \(error)\n".utf8))
  exit(2)
}
