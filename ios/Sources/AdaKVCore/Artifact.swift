import Foundation

/// The folder that `python export.py --target ios` wrote: the package, and what its manifest says about it.
public struct Artifact: Sendable {
  public let folder: URL
  /// The `.mlpackage`.
  public let package: URL
  public let modelName: String
  public let plan: CachePlan
  public let vocabularySize: Int
  public let endTokens: Set<Int32>
  /// Names, shapes and bytes of the package's states.
  public let states: CacheStates
  /// The cache's arrays if the package was exported with `--cache-io int8`; nil if it keeps its cache in states.
  public let inputs: CacheInputs?

  public init(folder: URL) throws {
    let data: Data
    do {
      data = try Data(contentsOf: folder.appendingPathComponent("manifest.json"))
    } catch {
      throw AdaKVError("no artifact at \(folder.path): make one with python export.py --target ios")
    }
    try self.init(folder: folder, manifest: data)
  }

  /// manifest: the content of the folder's manifest.json.
  public init(folder: URL, manifest data: Data) throws {
    let manifest: Manifest
    do {
      manifest = try JSONDecoder().decode(Manifest.self, from: data)
    } catch {
      throw AdaKVError("\(folder.path) is not a Core ML artifact of this version: export it with --target ios")
    }
    guard manifest.format == Self.format else {
      throw AdaKVError("\(folder.path) has format \(manifest.format), not \(Self.format): export it again")
    }
    self.folder = folder
    package = folder.appendingPathComponent(manifest.program)
    modelName = manifest.model.name
    plan = manifest.kv_cache
    vocabularySize = manifest.model.vocab_size
    endTokens = Set(manifest.model.eos_token_ids)
    states = manifest.core_ml_states
    inputs = manifest.core_ml_inputs
    try inputs?.check(plan)
  }

  /// Of the folder: what this version reads.
  static let format = 2

  private struct Manifest: Decodable {
    let format: Int
    let program: String
    let model: Model
    let kv_cache: CachePlan
    let core_ml_states: CacheStates
    let core_ml_inputs: CacheInputs?
  }

  private struct Model: Decodable {
    let name: String
    let vocab_size: Int
    let eos_token_ids: [Int32]
  }
}
