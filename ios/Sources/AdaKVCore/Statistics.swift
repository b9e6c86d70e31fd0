import Foundation

/// Of repeated measurements of one thing.
public struct Statistics: Equatable, Sendable {
  public let minimum: Double
  public let median: Double
  /// 10th and 90th percentile.
  public let low: Double
  public let high: Double

  /// nil without samples.
  public init?(_ samples: [Double]) {
    guard let least = samples.min() else { return nil }
    let sorted = samples.sorted()
    minimum = least
    median = Self.quantile(sorted, 0.5)
    low = Self.quantile(sorted, 0.1)
    high = Self.quantile(sorted, 0.9)
  }

  /// Linear between neighbours, as numpy's default. sorted: not empty; share: in [0, 1].
  static func quantile(_ sorted: [Double], _ share: Double) -> Double {
    let place = share * Double(sorted.count - 1)
    let below = Int(place)
    let above = min(below + 1, sorted.count - 1)
    return sorted[below] + (sorted[above] - sorted[below]) * (place - Double(below))
  }
}

extension BenchmarkTimes {
  /// For people: a line for what was timed, in milliseconds a token.
  public var summary: String {
    let perToken = zip(prefillNs, prefillTokens).map { Double($0) / Double($1) / 1e6 }
    let parts = [("prefill", perToken), ("decode", decodeNs.map { Double($0) / 1e6 })]
    return parts.compactMap { name, samples in
      Statistics(samples).map { found in
        let times = [found.median, found.low, found.high].map { String(format: "%.2f", $0) }
        return "\(name): \(times[0]) ms a token, 10th to 90th percentile \(times[1]) to \(times[2])"
      }
    }.joined(separator: "\n")
  }
}
