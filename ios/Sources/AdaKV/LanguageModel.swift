import CoreML
import Foundation

/// One step's answer.
public struct Step {
  /// Predictions after each token of the step, fp16 [tokens * vocabulary].
  public let logits: [Float16]
  /// Tier and slot of the token that left the window (-1 if none), then rows used in each tier; one row a token.
  public let plan: [[Int32]]
}

/// A package with its cache: one sequence at a time, fed in order.
///
/// `prefill` and `decode` are two functions of one package and share the states, so one `MLState` serves both. A
/// package with `--cache-io int8` keeps only its bookkeeping in states; the rows are in a `HostCache`.
public final class LanguageModel {
  public let artifact: Artifact
  /// Tokens held.
  public private(set) var position = 0
  private let decodeModel: MLModel
  private let prefillModel: MLModel?
  private let state: MLState
  private let cache: HostCache?

  /// Compiles the package (seconds, once) and loads its functions. usePrefill false decodes prompts token by token.
  public init(artifact: Artifact, computeUnits: MLComputeUnits, usePrefill: Bool = true) async throws {
    self.artifact = artifact
    let compiled = try await MLModel.compileModel(at: artifact.package)
    func load(_ function: String) throws -> MLModel {
      let configuration = MLModelConfiguration()
      configuration.computeUnits = computeUnits
      configuration.functionName = function
      return try MLModel(contentsOf: compiled, configuration: configuration)
    }
    decodeModel = try load("decode")
    prefillModel = usePrefill && artifact.prefillChunk > 1 ? try load("prefill") : nil
    state = decodeModel.makeState()
    cache = try artifact.inputs.map(HostCache.init)
  }

  /// Start a new sequence with the next step: position 0 resets the cache inside the graph.
  public func reset() {
    position = 0
  }

  /// Append any number of tokens: whole chunks through `prefill`, the rest through `decode`. The last step's answer.
  public func append(_ tokens: [Int32], each: (Int, Step) throws -> Void = { _, _ in }) throws -> Step {
    guard !tokens.isEmpty else { throw AdaKVError("the prompt is empty") }
    var last: Step?
    var done = 0
    while done < tokens.count {
      let whole = prefillModel != nil && done + artifact.prefillChunk <= tokens.count
      let count = whole ? artifact.prefillChunk : 1
      let step = try call(Array(tokens[done..<done + count]))
      done += count
      try each(count, step)
      last = step
    }
    return last!
  }

  private func call(_ tokens: [Int32]) throws -> Step {
    let model = tokens.count == 1 ? decodeModel : prefillModel!
    let ids = MLShapedArray<Int32>(scalars: tokens, shape: [1, tokens.count])
    let start = MLShapedArray<Int32>(scalars: [Int32(position)], shape: [1])
    var features = cache?.features ?? [:]
    features["tokens"] = MLFeatureValue(shapedArray: ids)
    features["input_pos"] = MLFeatureValue(shapedArray: start)
    let inputs = try MLDictionaryFeatureProvider(dictionary: features)
    let outputs = try model.prediction(from: inputs, using: state)
    switch scalars(outputs, "status", Int32.self).first {
    case 0: break
    case 1:
      throw AdaKVError(
        "context full: \(position + tokens.count) tokens do not fit the package's \(artifact.context)")
    default: throw AdaKVError("the package refused position \(position): reset before a new sequence")
    }
    let flat = scalars(outputs, "plan", Int32.self)
    let columns = flat.count / tokens.count
    let plan = stride(from: 0, to: flat.count, by: columns).map { Array(flat[$0..<$0 + columns]) }
    try cache?.write(position: position, plan: plan, outputs: outputs)
    position += tokens.count
    return Step(logits: scalars(outputs, "logits", Float16.self), plan: plan)
  }

  /// A state as fp16 values, in the order of its shape; names are in the manifest under `core_ml_states`.
  public func stateValues(_ name: String) -> [Float16] {
    state.withMultiArray(for: name) { MLShapedArray<Float16>(converting: $0).scalars }
  }

  private func scalars<T: MLShapedArrayScalar>(_ outputs: MLFeatureProvider, _ name: String, _: T.Type) -> [T] {
    guard let array = outputs.featureValue(for: name)?.multiArrayValue else { return [] }
    return MLShapedArray<T>(converting: array).scalars
  }
}

/// Index of the largest of the last `count` values: the greedy next token.
public func greedy(_ logits: [Float16], vocabulary count: Int) -> Int32 {
  let last = logits.suffix(count)
  var best = last.startIndex
  for i in last.indices where last[i] > last[best] {
    best = i
  }
  return Int32(best - last.startIndex)
}
