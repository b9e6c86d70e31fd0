import Foundation

/// Resident memory of the process in bytes; nil where the system does not tell.
public struct MemoryUse: Encodable, Equatable, Sendable {
  public let rss: Int?
  public let anonymous: Int?
  public let file: Int?
  /// What the system holds against the app: on iOS the figure that its limit is about.
  public let footprint: Int?

  public init(rss: Int? = nil, anonymous: Int? = nil, file: Int? = nil, footprint: Int? = nil) {
    self.rss = rss
    self.anonymous = anonymous
    self.file = file
    self.footprint = footprint
  }

  enum CodingKeys: String, CodingKey { case rss, anonymous, file, footprint }

  /// Written out: what is unknown is null, not left out.
  public func encode(to encoder: Encoder) throws {
    var values = encoder.container(keyedBy: CodingKeys.self)
    try values.encode(rss, forKey: .rss)
    try values.encode(anonymous, forKey: .anonymous)
    try values.encode(file, forKey: .file)
    try values.encode(footprint, forKey: .footprint)
  }
}

/// The object that a runner prints, alone on its last line: docs/bench-schema.md describes every field.
public struct RunReport: Encodable {
  public struct Runner: Encodable {
    /// "coreml-" and the compute units.
    public let isa: String
    /// Core ML chooses its threads itself, and the system their cores.
    public let threads: Int? = nil
    public let cpuMask: String? = nil
    public let platform: String

    public init(units: String, platform: String) {
      isa = "coreml-\(units)"
      self.platform = platform
    }

    enum CodingKeys: String, CodingKey { case isa, threads, cpuMask, platform }

    /// Written out: what is unknown is null, not left out.
    public func encode(to encoder: Encoder) throws {
      var values = encoder.container(keyedBy: CodingKeys.self)
      try values.encode(isa, forKey: .isa)
      try values.encode(threads, forKey: .threads)
      try values.encode(cpuMask, forKey: .cpuMask)
      try values.encode(platform, forKey: .platform)
    }
  }

  public struct Memory: Encodable {
    public let loaded: MemoryUse
    public let end: MemoryUse
    /// The largest resident size so far, bytes.
    public let peak: Int

    public init(loaded: MemoryUse, end: MemoryUse, peak: Int) {
      self.loaded = loaded
      self.end = end
      self.peak = peak
    }
  }

  public struct Cache: Encodable {
    public let bytes: Int
    public let tokensByTier: [Int]
    public let position: Int

    public init(bytes: Int, tokensByTier: [Int], position: Int) {
      self.bytes = bytes
      self.tokensByTier = tokensByTier
      self.position = position
    }
  }

  /// A system that tells no clocks.
  private struct Clocks: Encodable {
    let cores: [Int] = []
    let before: [Int] = []
    let after: [Int] = []

    enum CodingKeys: String, CodingKey { case cores, before, after }
  }

  public struct Logits: Encodable {
    public let steps: Int
    public let vocabulary: Int
  }

  public static let schema = "adakv-run-1"

  public let runner: Runner
  public let loadNs: UInt64
  public let memory: Memory
  public let cache: Cache
  private let measured: (test: BenchmarkTest, times: BenchmarkTimes)?
  private let logits: Logits?

  /// Of `--bench`.
  public init(
    runner: Runner, loadNs: UInt64, memory: Memory, cache: Cache, test: BenchmarkTest, times: BenchmarkTimes
  ) {
    self.runner = runner
    self.loadNs = loadNs
    self.memory = memory
    self.cache = cache
    measured = (test, times)
    logits = nil
  }

  /// Of `--force`. rows: logits as written.
  public init(runner: Runner, loadNs: UInt64, memory: Memory, cache: Cache, rows: [[Float]]) {
    self.runner = runner
    self.loadNs = loadNs
    self.memory = memory
    self.cache = cache
    measured = nil
    logits = Logits(steps: rows.count, vocabulary: rows.first?.count ?? 0)
  }

  enum CodingKeys: String, CodingKey {
    case schema, runner, test, loadNs, coldStepNs, fillNs, prefillNs, prefillTokens, decodeNs, firstTokenNs
    case startedNs, clocksKhz, memory, cache, logits, finishReason
  }

  public func encode(to encoder: Encoder) throws {
    var values = encoder.container(keyedBy: CodingKeys.self)
    try values.encode(Self.schema, forKey: .schema)
    try values.encode(runner, forKey: .runner)
    try values.encode(loadNs, forKey: .loadNs)
    try values.encode(memory, forKey: .memory)
    try values.encode(cache, forKey: .cache)
    try values.encodeIfPresent(logits, forKey: .logits)
    guard let (test, times) = measured else { return }
    try values.encode(test, forKey: .test)
    try values.encode(times.coldStepNs, forKey: .coldStepNs)
    try values.encode(times.fillNs, forKey: .fillNs)
    try values.encode(times.prefillNs, forKey: .prefillNs)
    try values.encode(times.prefillTokens, forKey: .prefillTokens)
    try values.encode(times.decodeNs, forKey: .decodeNs)
    try values.encode(times.firstTokenNs, forKey: .firstTokenNs)
    try values.encode(times.startedNs, forKey: .startedNs)
    try values.encode(Clocks(), forKey: .clocksKhz)
    try values.encode(times.finishReason, forKey: .finishReason)
  }

  /// One line.
  public func json() throws -> Data {
    let encoder = JSONEncoder()
    encoder.keyEncodingStrategy = .convertToSnakeCase
    encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
    return try encoder.encode(self)
  }
}

/// Rows of logits as the harness reads them: float32, little endian, row after row.
public func littleEndian(_ rows: [[Float]]) -> Data {
  var data = Data(capacity: 4 * rows.reduce(0) { $0 + $1.count })
  for row in rows {
    for value in row {
      withUnsafeBytes(of: value.bitPattern.littleEndian) { data.append(contentsOf: $0) }
    }
  }
  return data
}
