import AdaKVCore
import CoreML
import Foundation

/// Carries out a command line: what `adakv-run` does, and an app that was launched with its words. Lines of JSON go to
/// standard output, `error: ...` to standard error.
///
/// folder: what relative names are relative to. Returns the exit status: 0, or 2 after an error.
public func runCommandLine(_ arguments: [String], in folder: URL) async -> Int32 {
  if arguments.contains("--help") || arguments.contains("-h") {
    print(RunOptions.usage)
    return 0
  }
  do {
    let options = try RunOptions(arguments) { try RunOptions.contents(folder.appending(path: $0).path) }
    try await Runner(options, folder).run()
    return 0
  } catch {
    FileHandle.standardError.write(Data("error: \(error)\n".utf8))
    return 2
  }
}

private struct Runner {
  let options: RunOptions
  let folder: URL

  init(_ options: RunOptions, _ folder: URL) {
    self.options = options
    self.folder = folder
  }

  func run() async throws {
    let artifact = try Artifact(folder: folder.appending(path: options.artifact))
    if let token = options.tokens.first(where: { $0 >= artifact.vocabularySize }) {
      throw AdaKVError("token id \(token) is outside the vocabulary of \(artifact.vocabularySize)")
    }
    let start = now()
    let model = try await LanguageModel(
      artifact: artifact, computeUnits: options.units.forCoreML, usePrefill: options.usePrefill)
    let loadNs = now() - start
    let loaded = MemoryUse.now()

    switch options.command {
    case .bench(let test):
      var times = try model.benchmark(test, tokens: options.tokens, now: now)
      times.startedNs.load = start
      FileHandle.standardError.write(Data("\(times.summary)\n".utf8))
      try printLine(
        RunReport(
          runner: runner, loadNs: loadNs, memory: memory(loaded), cache: cache(model), test: test, times: times
        ).json())
    case .force(let count, let logits, let states):
      let rows = try model.force(options.tokens, last: count)
      try write(littleEndian(rows), to: logits)
      if let states {
        for (name, bytes) in model.buffers() { try write(bytes, to: "\(states)/\(name)") }
      }
      try printLine(
        RunReport(runner: runner, loadNs: loadNs, memory: memory(loaded), cache: cache(model), rows: rows).json())
    case .generate(let limit, let temperature, let seed):
      var sampler = Sampler(temperature: temperature, seed: seed)
      let reason = try model.generate(
        options.tokens, limit: limit, endTokens: artifact.endTokens, sampler: &sampler
      ) { token in
        try printLine(Data(#"{"token":\#(token)}"#.utf8))
        return true
      }
      try printLine(Data(#"{"finish_reason":"\#(reason.rawValue)","tokens_by_tier":\#(model.tokensByTier)}"#.utf8))
    }
  }

  private var runner: RunReport.Runner {
    let system = ProcessInfo.processInfo
    return RunReport.Runner(units: options.units.rawValue, platform: system.operatingSystemVersionString)
  }

  private func memory(_ loaded: MemoryUse) -> RunReport.Memory {
    RunReport.Memory(loaded: loaded, end: .now(), peak: MemoryUse.peak())
  }

  private func cache(_ model: LanguageModel) -> RunReport.Cache {
    RunReport.Cache(
      bytes: model.artifact.states.bytesAllocated, tokensByTier: model.tokensByTier, position: model.position)
  }

  /// Nanoseconds since boot, not counting sleep.
  private func now() -> UInt64 {
    clock_gettime_nsec_np(CLOCK_UPTIME_RAW)
  }

  private func write(_ data: Data, to name: String) throws {
    let file = folder.appending(path: name)
    do {
      try FileManager.default.createDirectory(at: file.deletingLastPathComponent(), withIntermediateDirectories: true)
      try data.write(to: file)
    } catch {
      throw AdaKVError("cannot write \(file.path): is there room?")
    }
  }

  private func printLine(_ data: Data) throws {
    try FileHandle.standardOutput.write(contentsOf: data + Data("\n".utf8))
  }
}

extension RunOptions.ComputeUnits {
  public var forCoreML: MLComputeUnits {
    switch self {
    case .cpuAndNeuralEngine: .cpuAndNeuralEngine
    case .cpuAndGPU: .cpuAndGPU
    case .cpuOnly: .cpuOnly
    case .all: .all
    }
  }
}
