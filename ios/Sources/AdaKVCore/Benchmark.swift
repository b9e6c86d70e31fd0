/// One test of llama-bench's kind: prefill pp tokens, then decode tg tokens, with `depth` tokens in the cache before.
public struct BenchmarkTest: Codable, Equatable, Sendable {
  public let pp: Int
  public let tg: Int
  public let depth: Int

  public init(pp: Int, tg: Int, depth: Int) {
    self.pp = pp
    self.tg = tg
    self.depth = depth
  }
}

/// What a test took, in nanoseconds of a monotonic clock: docs/bench-schema.md has the fields.
public struct BenchmarkTimes: Equatable, Sendable {
  /// When each part began.
  public struct Started: Encodable, Equatable, Sendable {
    /// Set by who loads the model.
    public var load: UInt64 = 0
    public var warmUp: UInt64 = 0
    public var fill: UInt64 = 0
    public var prefill: UInt64 = 0
    public var decode: UInt64 = 0
  }

  public var startedNs = Started()
  public var coldStepNs: UInt64 = 0
  public var fillNs: UInt64 = 0
  /// One entry a step of the pp tokens.
  public var prefillNs: [UInt64] = []
  public var prefillTokens: [Int] = []
  /// One entry a token of the tg tokens.
  public var decodeNs: [UInt64] = []
  public var firstTokenNs: UInt64?
  public var finishReason = FinishReason.done
}

extension TokenModel {
  /// Runs one test. tokens: fed in turn, from the start again where they are too few. now: nanoseconds, monotonic.
  ///
  /// Before it, apart, a warm-up of one chunk and one token on the same cache, which is emptied after it. A full
  /// context ends the test early, and `finishReason` says so.
  public func benchmark(_ test: BenchmarkTest, tokens: [Int32], now: () -> UInt64) throws -> BenchmarkTimes {
    guard !tokens.isEmpty else { throw AdaKVError("no tokens to feed: pass --tokens or --tokens-file") }
    var times = BenchmarkTimes()
    var fed = 0

    /// Feeds up to `count` tokens while they fit, in chunks or one by one as in decoding, where the next token is
    /// chosen after each; `each` gets nanoseconds and tokens of a step.
    func feed(_ count: Int, inChunks: Bool, each: (UInt64, Int) -> Void) throws -> [Float] {
      let fitting = min(count, context - position)
      var logits: [Float] = []
      for size in inChunks ? steps(fitting) : Array(repeating: 1, count: fitting) {
        let next = (fed..<fed + size).map { tokens[$0 % tokens.count] }
        fed += size
        let start = now()
        logits = try step(next)
        if !inChunks { _ = Sampler.greedy(logits) }
        each(now() - start, size)
      }
      if fitting < count { times.finishReason = .context }
      return logits
    }

    times.startedNs.warmUp = now()
    reset()
    var cold: UInt64?
    _ = try feed(chunk, inChunks: true) { ns, _ in cold = cold ?? ns }
    _ = try feed(1, inChunks: false) { _, _ in }
    times.coldStepNs = cold ?? 0
    times.finishReason = .done
    reset()
    fed = 0

    times.startedNs.fill = now()
    _ = try feed(test.depth, inChunks: true) { _, _ in }
    times.startedNs.prefill = now()
    times.fillNs = times.startedNs.prefill - times.startedNs.fill
    let logits = try feed(test.pp, inChunks: true) { ns, size in
      times.prefillNs.append(ns)
      times.prefillTokens.append(size)
    }
    if !logits.isEmpty {
      _ = Sampler.greedy(logits)
      times.firstTokenNs = now() - times.startedNs.prefill
    }
    times.startedNs.decode = now()
    _ = try feed(test.tg, inChunks: false) { ns, _ in times.decodeNs.append(ns) }
    return times
  }

  /// The parity probe: prefill all but the last `count` tokens, then feed these one by one. Logits
  /// [count + 1][vocabulary]: of the prefill, and after each of them.
  public func force(_ tokens: [Int32], last count: Int) throws -> [[Float]] {
    guard count >= 1, count < tokens.count else {
      throw AdaKVError("--force takes 1 to \(tokens.count - 1) of the \(tokens.count) tokens, not \(count)")
    }
    reset()
    var rows = [try append(Array(tokens.dropLast(count)))]
    for token in tokens.suffix(count) { rows.append(try append([token])) }
    return rows
  }
}
