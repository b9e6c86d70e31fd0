/// A loaded program with its cache: one sequence at a time, fed in order.
public protocol TokenModel: AnyObject {
  /// Tokens that the cache holds.
  var context: Int { get }
  /// Tokens that a step of prefill takes, exactly; 1 if there is none.
  var chunk: Int { get }
  /// Length of a row of logits.
  var vocabularySize: Int { get }
  /// Tokens held.
  var position: Int { get }
  var tokensByTier: [Int] { get }

  /// Start a new sequence with the next step.
  func reset()

  /// Append 1 token, or exactly `chunk`; logits [vocabulary] after the last. Throws past the context.
  func step(_ tokens: [Int32]) throws -> [Float]
}

extension TokenModel {
  /// Sizes of the steps that append `count` tokens: whole chunks first, then one token at a time.
  func steps(_ count: Int) -> [Int] {
    Array(repeating: chunk, count: count / chunk) + Array(repeating: 1, count: count % chunk)
  }

  /// Append any number of tokens; logits after the last.
  public func append(_ tokens: [Int32]) throws -> [Float] {
    guard !tokens.isEmpty else { throw AdaKVError("the prompt is empty: pass some tokens") }
    guard position + tokens.count <= context else {
      throw AdaKVError(
        "context full: \(position + tokens.count) tokens do not fit the package's \(context):"
          + " shorten the prompt or export with a larger --context")
    }
    var logits: [Float] = []
    var rest = tokens[...]
    for size in steps(tokens.count) {
      logits = try step(Array(rest.prefix(size)))
      rest = rest.dropFirst(size)
    }
    return logits
  }

  /// Append a prompt and then what the sampler picks, until an end token, `limit` new tokens or a full context. `each`
  /// gets every new token at once, and returns false to stop.
  @discardableResult
  public func generate(
    _ prompt: [Int32], limit: Int, endTokens: Set<Int32>, sampler: inout Sampler,
    each: (Int32) throws -> Bool
  ) throws -> FinishReason {
    var logits = try append(prompt)
    for made in 1...max(limit, 1) {
      let token = sampler.pick(logits)
      if endTokens.contains(token) { return .eos }
      guard try each(token) else { return .stopped }
      if made == limit { break }
      if position == context { return .context }
      logits = try step([token])
    }
    return .length
  }
}

public enum FinishReason: String, Encodable, Sendable {
  case eos, length, context, stopped, done
}
