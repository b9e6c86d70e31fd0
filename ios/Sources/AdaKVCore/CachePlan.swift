/// The manifest's `kv_cache`: how many tokens the cache holds and how they are split. Names are the manifest's.
public struct CachePlan: Decodable, Equatable, Sendable {
  public struct Tier: Decodable, Equatable, Sendable {
    /// Nominal bits a code.
    public let bits: Double
    /// Tokens.
    public let capacity: Int
  }

  /// Tokens that the cache holds.
  public let context: Int
  /// Newest tokens, kept at 8 bits or more.
  public let window: Int
  /// Tokens that one `prefill` call takes, exactly.
  public let prefillChunk: Int
  public let tiers: [Tier]

  enum CodingKeys: String, CodingKey {
    case context, window, tiers
    case prefillChunk = "prefill_chunk"
  }

  /// Tokens in each tier after a step, from the last row of its plan: tier, slot, then the rows used in each tier.
  public func tokensByTier(_ lastRow: [Int32]) -> [Int] {
    lastRow.isEmpty ? Array(repeating: 0, count: tiers.count) : lastRow.dropFirst(2).map(Int.init)
  }
}

/// The manifest's `core_ml_states`, as far as a runner needs it.
public struct CacheStates: Decodable, Sendable {
  public struct State: Decodable, Sendable {
    /// fp16; [1, channels, 1, columns] for pools.
    public let shape: [Int]
    public let bytes: Int
  }

  /// Bytes of the whole cache, in this package's form of it.
  public let bytesAllocated: Int
  /// By the name in the package.
  public let states: [String: State]

  enum CodingKeys: String, CodingKey {
    case states
    case bytesAllocated = "bytes_allocated"
  }
}
