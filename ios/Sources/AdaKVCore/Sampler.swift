import Foundation

/// Chooses the next token from logits [vocabulary].
public struct Sampler {
  /// 0 takes the likeliest token.
  public let temperature: Double
  private var random: SplitMix64

  public init(temperature: Double = 0, seed: UInt64 = 0) {
    self.temperature = temperature
    random = SplitMix64(seed: seed)
  }

  public mutating func pick(_ logits: [Float]) -> Int32 {
    if temperature == 0 { return Self.greedy(logits) }
    return Self.pick(logits, temperature: temperature, at: random.nextUnit())
  }

  /// Index of the largest; the first of equals.
  public static func greedy(_ logits: [Float]) -> Int32 {
    var best = 0
    for i in logits.indices where logits[i] > logits[best] { best = i }
    return Int32(best)
  }

  /// The token at which the cumulated softmax(logits / temperature) passes `unit`, in [0, 1).
  public static func pick(_ logits: [Float], temperature: Double, at unit: Double) -> Int32 {
    let largest = Double(logits[Int(greedy(logits))])
    let weights = logits.map { exp((Double($0) - largest) / temperature) }
    var left = unit * weights.reduce(0, +)
    for (i, weight) in weights.enumerated() {
      left -= weight
      if left < 0 { return Int32(i) }
    }
    return greedy(logits)  // rounding used up the last weight
  }
}

/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014: small, seeded, the same everywhere.
public struct SplitMix64: RandomNumberGenerator {
  private var state: UInt64

  public init(seed: UInt64) {
    state = seed
  }

  public mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var z = state
    z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
    z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
    return z ^ (z >> 31)
  }

  /// In [0, 1), 53 bits.
  mutating func nextUnit() -> Double {
    Double(next() >> 11) * 0x1p-53
  }
}
