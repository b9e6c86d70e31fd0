import AdaKVCore
import CoreML
import Foundation

/// A package with its cache: one sequence at a time, fed in order.
///
/// `prefill` and `decode` are two functions of one package and share the states, so one `MLState` serves both. A
/// package with `--cache-io int8` keeps only its bookkeeping in states; the rows are in a `HostCache`.
public final class LanguageModel: TokenModel {
  public let artifact: Artifact
  public let chunk: Int
  public private(set) var position = 0
  public private(set) var tokensByTier: [Int]
  /// Temporary, as large as the package.
  private let compiled: URL
  private let decodeModel: MLModel
  private let prefillModel: MLModel?
  private let state: MLState
  private let cache: HostCache?
  /// The cache's arrays as Core ML sees them: views of its memory, not copies.
  private let cacheFeatures: [String: MLFeatureValue]

  public var context: Int { artifact.plan.context }
  public var vocabularySize: Int { artifact.vocabularySize }

  /// Compiles the package (seconds, once) and loads its functions. usePrefill false decodes prompts token by token.
  public init(artifact: Artifact, computeUnits: MLComputeUnits, usePrefill: Bool = true) async throws {
    self.artifact = artifact
    chunk = usePrefill ? artifact.plan.prefillChunk : 1
    tokensByTier = artifact.plan.tokensByTier([])
    let compiled = try await MLModel.compileModel(at: artifact.package)
    self.compiled = compiled
    func load(_ function: String) throws -> MLModel {
      let configuration = MLModelConfiguration()
      configuration.computeUnits = computeUnits
      configuration.functionName = function
      return try MLModel(contentsOf: compiled, configuration: configuration)
    }
    decodeModel = try load("decode")
    prefillModel = chunk > 1 ? try load("prefill") : nil
    state = decodeModel.makeState()
    cache = artifact.inputs.map(HostCache.init)
    cacheFeatures = try cache?.features() ?? [:]
  }

  deinit {
    try? FileManager.default.removeItem(at: compiled)
  }

  /// Position 0 resets the cache inside the graph.
  public func reset() {
    position = 0
    tokensByTier = artifact.plan.tokensByTier([])
  }

  public func step(_ tokens: [Int32]) throws -> [Float] {
    guard let model = tokens.count == 1 ? decodeModel : prefillModel, tokens.count == 1 || tokens.count == chunk else {
      throw AdaKVError("a step takes 1 token or \(chunk), not \(tokens.count)")
    }
    var features = cacheFeatures
    features["tokens"] = MLFeatureValue(shapedArray: MLShapedArray(scalars: tokens, shape: [1, tokens.count]))
    features["input_pos"] = MLFeatureValue(shapedArray: MLShapedArray(scalars: [Int32(position)], shape: [1]))
    let inputs = try MLDictionaryFeatureProvider(dictionary: features)
    let outputs = StepOutputs(try model.prediction(from: inputs, using: state))
    switch try outputs.integers("status").first {
    case 0: break
    case 1: throw AdaKVError("context full: \(position + tokens.count) tokens do not fit the package's \(context)")
    default: throw AdaKVError("the package refused position \(position): reset before a new sequence")
    }
    let flat = try outputs.integers("plan")
    let columns = flat.count / tokens.count
    let plan = stride(from: 0, to: flat.count, by: columns).map { Array(flat[$0..<$0 + columns]) }
    try cache?.write(position: position, plan: plan, outputs: outputs)
    position += tokens.count
    tokensByTier = artifact.plan.tokensByTier(plan.last ?? [])
    return try outputs.lastRow("logits", length: vocabularySize)
  }

  /// Everything the cache keeps: name to little-endian bytes. States are fp16 in the order of their shape.
  public func buffers() -> [String: Data] {
    let kept = artifact.states.states.keys.filter { cache == nil || $0.contains("control_") }
    var buffers = Dictionary(uniqueKeysWithValues: kept.map { name in (name, stateBytes(name)) })
    for (name, array) in cache?.arrays ?? [:] { buffers[name] = Data(array.bytes) }
    return buffers
  }

  private func stateBytes(_ name: String) -> Data {
    state.withMultiArray(for: name) { array in
      MLShapedArray<Float16>(converting: array).scalars.withUnsafeBytes { Data($0) }
    }
  }
}
