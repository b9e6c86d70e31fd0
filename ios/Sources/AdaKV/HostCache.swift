import CoreML
import Foundation

/// The manifest's `core_ml_inputs`: arrays that the app keeps, and where a step's rows go in them.
public struct CacheInputs: Decodable {
  struct Entry: Decodable {
    /// int8 or float16.
    let dtype: String
    /// [1, channels, 1, columns].
    let shape: [Int]
    /// Name of the output with what a step adds.
    let new: String
  }

  struct Tier: Decodable {
    let array: String
    let first_column: Int
    /// The tier is as wide as the window: its rows are columns of the window's array that leave the ring.
    let copied: Bool
  }

  struct Window: Decodable {
    let array: String
    let first_column: Int
    let columns: Int
  }

  let arrays: [String: Entry]
  let tiers: [Tier]
  let window: Window
  let sink: String
}

/// The arrays of a package with `--cache-io int8`: passed to every call, extended after it. The procedure is that of
/// `write_step` in device_tests/coreml/host.py.
final class HostCache {
  private let inputs: CacheInputs
  private let arrays: [String: MLMultiArray]

  /// The arrays as they are now, for the next call.
  var features: [String: MLFeatureValue] {
    arrays.mapValues { MLFeatureValue(multiArray: $0) }
  }

  init(_ inputs: CacheInputs) throws {
    guard #available(iOS 26, macOS 26, *) else {
      throw AdaKVError("the package has int8 inputs and needs iOS 26: export it without --cache-io int8")
    }
    self.inputs = inputs
    arrays = try inputs.arrays.mapValues { entry in
      let type: MLMultiArrayDataType = entry.dtype == "int8" ? .int8 : .float16
      let array = try MLMultiArray(shape: entry.shape.map { NSNumber(value: $0) }, dataType: type)
      array.withUnsafeMutableBytes { bytes, _ in _ = bytes.initializeMemory(as: UInt8.self, repeating: 0) }
      return array
    }
  }

  /// Store a step that reported status 0. plan: a row a token, tier and slot of the token that left the window first.
  func write(position: Int, plan: [[Int32]], outputs: MLFeatureProvider) throws {
    if position == 0 {
      for column in 0..<inputs.arrays[inputs.sink]!.shape[3] {
        try copy(outputs, column, to: inputs.sink, column)
      }
    }
    let window = inputs.window
    for (i, row) in plan.enumerated() {
      let at = window.first_column + (position + i) % window.columns
      if row[0] >= 0 {
        let tier = inputs.tiers[Int(row[0])]
        let column = tier.first_column + Int(row[1])
        for name in [tier.array, tier.array + "_scales"] {
          if tier.copied {
            Self.copyColumn(from: arrays[name]!, at, to: arrays[name]!, column)
          } else {
            try copy(outputs, i, to: name, column)
          }
        }
      }
      if position + i > 0 {
        for name in [window.array, window.array + "_scales"] { try copy(outputs, i, to: name, at) }
      }
    }
  }

  private func copy(_ outputs: MLFeatureProvider, _ from: Int, to name: String, _ column: Int) throws {
    let output = inputs.arrays[name]!.new
    guard let source = outputs.featureValue(for: output)?.multiArrayValue else {
      throw AdaKVError("the package returned no \(output): export it again")
    }
    Self.copyColumn(from: source, from, to: arrays[name]!, column)
  }

  /// One column over all channels of [1, channels, 1, columns] arrays of one type, whatever their strides.
  private static func copyColumn(from source: MLMultiArray, _ from: Int, to target: MLMultiArray, _ to: Int) {
    let size = source.dataType == .float16 ? 2 : 1
    let channels = source.shape[1].intValue
    var column = [UInt8](repeating: 0, count: channels * size)
    source.withUnsafeBytes { bytes in
      let step = source.strides[1].intValue * size
      let start = from * source.strides[3].intValue * size
      for channel in 0..<channels {
        for byte in 0..<size { column[channel * size + byte] = bytes[start + channel * step + byte] }
      }
    }
    target.withUnsafeMutableBytes { bytes, strides in
      for channel in 0..<channels {
        let place = (channel * strides[1] + to * strides[3]) * size
        for byte in 0..<size { bytes[place + byte] = column[channel * size + byte] }
      }
    }
  }
}
