import AdaKVCore
import CoreML

/// What a call returned, read without regard to how Core ML laid it out in memory.
struct StepOutputs: StepColumns {
  private let provider: MLFeatureProvider

  init(_ provider: MLFeatureProvider) {
    self.provider = provider
  }

  func integers(_ name: String) throws -> [Int32] {
    MLShapedArray<Int32>(converting: try array(name)).scalars
  }

  /// The last `length` of an fp16 output's values.
  func lastRow(_ name: String, length: Int) throws -> [Float] {
    MLShapedArray<Float16>(converting: try array(name)).scalars.suffix(length).map(Float.init)
  }

  /// Of an output [1, channels, 1, columns], int8 or fp16.
  func column(_ index: Int, of output: String) throws -> [UInt8] {
    let array = try array(output)
    let size = array.dataType == .float16 ? 2 : 1
    let step = array.strides[1].intValue * size
    let start = index * array.strides[3].intValue * size
    return array.withUnsafeBytes { bytes in
      (0..<array.shape[1].intValue).flatMap { channel in
        bytes[(start + channel * step)..<(start + channel * step + size)]
      }
    }
  }

  private func array(_ name: String) throws -> MLMultiArray {
    guard let array = provider.featureValue(for: name)?.multiArrayValue else {
      throw AdaKVError("the package returned no \(name): export it again")
    }
    return array
  }
}

extension HostCache {
  /// Views of the arrays, for every call. Valid as long as the cache.
  func features() throws -> [String: MLFeatureValue] {
    guard #available(iOS 26, macOS 26, *) else {
      throw AdaKVError("the package has int8 inputs and needs iOS 26 or macOS 26: export without --cache-io int8")
    }
    return try arrays.mapValues { array in
      let shape = [1, array.channels, 1, array.columns]
      let strides = [array.channels * array.columns, array.columns, array.columns, 1]
      let view = try MLMultiArray(
        dataPointer: array.bytes.baseAddress!, shape: shape.map { NSNumber(value: $0) },
        dataType: array.type == .int8 ? .int8 : .float16, strides: strides.map { NSNumber(value: $0) },
        deallocator: nil)
      return MLFeatureValue(multiArray: view)
    }
  }
}
