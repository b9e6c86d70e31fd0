/// One array [1, channels, 1, columns] of a cache that the app keeps: row-major, zero at first.
public final class CacheArray {
  public let type: CacheInputs.ElementType
  public let channels: Int
  public let columns: Int
  /// On a page of its own, so that a framework can take it without a copy. Lives as long as the object.
  public let bytes: UnsafeMutableRawBufferPointer

  /// shape: [1, channels, 1, columns].
  init(type: CacheInputs.ElementType, shape: [Int]) {
    self.type = type
    channels = shape[1]
    columns = shape[3]
    bytes = .allocate(byteCount: shape[1] * shape[3] * type.size, alignment: 16384)
    _ = bytes.initializeMemory(as: UInt8.self, repeating: 0)
  }

  deinit {
    bytes.deallocate()
  }

  /// One column, an element a channel, in the order of memory.
  public func column(_ index: Int) -> [UInt8] {
    var values: [UInt8] = []
    values.reserveCapacity(channels * type.size)
    for channel in 0..<channels {
      let start = (channel * columns + index) * type.size
      values.append(contentsOf: bytes[start..<start + type.size])
    }
    return values
  }

  func setColumn(_ index: Int, _ values: [UInt8]) {
    precondition(values.count == channels * type.size, "a column has one element a channel")
    for channel in 0..<channels {
      for byte in 0..<type.size {
        bytes[(channel * columns + index) * type.size + byte] = values[channel * type.size + byte]
      }
    }
  }
}

/// What a step returned: its outputs' columns, an element a channel, as `CacheArray.column` gives them.
public protocol StepColumns {
  func column(_ index: Int, of output: String) throws -> [UInt8]
}

/// The arrays of a package with `--cache-io int8`: passed to every call, extended after it. The procedure is that of
/// `write_step` in device_tests/coreml/host.py; the fixture of the tests is made by it.
public final class HostCache {
  /// By the name of the input.
  public let arrays: [String: CacheArray]
  private let inputs: CacheInputs

  public init(_ inputs: CacheInputs) {
    self.inputs = inputs
    arrays = inputs.arrays.mapValues { CacheArray(type: $0.dtype, shape: $0.shape) }
  }

  /// Bytes of all arrays.
  public var bytes: Int { arrays.values.reduce(0) { $0 + $1.bytes.count } }

  /// Store a step that reported status 0, token by token: the row that leaves the window goes where the plan says,
  /// then the new row takes its place in the ring. Position 0 is the sink alone.
  ///
  /// plan: a row a token, tier and slot of the token that left the window (-1 if none), then rows used in each tier.
  public func write(position: Int, plan: [[Int32]], outputs: some StepColumns) throws {
    if position == 0, let sink = arrays[inputs.sink] {
      for column in 0..<sink.columns {
        try take(outputs, column, into: inputs.sink, column)
      }
    }
    let window = inputs.window
    for (i, row) in plan.enumerated() {
      let ring = window.firstColumn + (position + i) % window.columns
      if row[0] >= 0 {
        let tier = inputs.tiers[Int(row[0])]
        let column = tier.firstColumn + Int(row[1])
        for name in CacheInputs.pair(tier.array) {
          if tier.copied, let array = arrays[name] {
            array.setColumn(column, array.column(ring))
          } else {
            try take(outputs, i, into: name, column)
          }
        }
      }
      if position + i > 0 {
        for name in CacheInputs.pair(window.array) { try take(outputs, i, into: name, ring) }
      }
    }
  }

  private func take(_ outputs: some StepColumns, _ from: Int, into name: String, _ column: Int) throws {
    guard let entry = inputs.arrays[name], let array = arrays[name] else { return }
    array.setColumn(column, try outputs.column(from, of: entry.new))
  }
}
