/// The manifest's `core_ml_inputs`: arrays that the app keeps, and where a step's rows go in them.
public struct CacheInputs: Decodable, Sendable {
  public struct Entry: Decodable, Sendable {
    public let dtype: ElementType
    /// [1, channels, 1, columns].
    public let shape: [Int]
    /// Name of the output with what a step adds.
    public let new: String
  }

  public struct Tier: Decodable, Sendable {
    public let array: String
    public let firstColumn: Int
    /// The tier is as wide as the window: its rows are columns of the window's array that leave the ring.
    public let copied: Bool

    enum CodingKeys: String, CodingKey {
      case array, copied
      case firstColumn = "first_column"
    }
  }

  public struct Window: Decodable, Sendable {
    public let array: String
    public let firstColumn: Int
    public let columns: Int

    enum CodingKeys: String, CodingKey {
      case array, columns
      case firstColumn = "first_column"
    }
  }

  public enum ElementType: String, Decodable, Sendable {
    case int8, float16

    public var size: Int { self == .int8 ? 1 : 2 }
  }

  public let arrays: [String: Entry]
  public let tiers: [Tier]
  public let window: Window
  public let sink: String

  /// An array of codes and the array of its scales are written together.
  static func pair(_ array: String) -> [String] {
    [array, array + "_scales"]
  }

  /// Throws unless every array that a step writes is there, so that writing a step cannot fail for want of one. A tier
  /// without capacity has none.
  func check(_ plan: CachePlan) throws {
    guard tiers.count == plan.tiers.count else {
      throw AdaKVError("the manifest's plan and arrays disagree about the tiers: export again")
    }
    let used = zip(tiers, plan.tiers).filter { $0.1.capacity > 0 }.map(\.0.array)
    let named = Set(used + [window.array]).flatMap(Self.pair) + [sink]
    for name in named where arrays[name]?.shape.count != 4 {
      throw AdaKVError("the manifest describes no array \(name): export again")
    }
  }
}
