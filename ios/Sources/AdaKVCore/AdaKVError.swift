/// What a user can fix: one line, with the remedy.
public struct AdaKVError: Error, Equatable, CustomStringConvertible {
  public let description: String

  public init(_ description: String) {
    self.description = description
  }
}
