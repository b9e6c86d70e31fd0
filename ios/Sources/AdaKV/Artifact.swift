import Foundation

/// What a user can fix: one line, with the remedy.
public struct AdaKVError: Error, CustomStringConvertible {
  public let description: String

  public init(_ description: String) {
    self.description = description
  }
}

/// The folder that `python export.py --target ios` wrote: the package and what its manifest says about it.
public struct Artifact {
  public let folder: URL
  /// The `.mlpackage`.
  public let package: URL
  /// Tokens that the cache holds.
  public let context: Int
  /// Tokens that one `prefill` call takes, exactly.
  public let prefillChunk: Int
  public let vocabularySize: Int
  public let endTokens: Set<Int32>
  /// The cache's inputs if the package was exported with `--cache-io int8`; nil if it keeps its cache in states.
  public let inputs: CacheInputs?

  public init(folder: URL) throws {
    let data: Data
    do {
      data = try Data(contentsOf: folder.appending(path: "manifest.json"))
    } catch {
      throw AdaKVError("no artifact at \(folder.path): make one with python export.py --target ios")
    }
    guard let manifest = try? JSONDecoder().decode(Manifest.self, from: data) else {
      throw AdaKVError("\(folder.path) is not a Core ML artifact: export it with --target ios")
    }
    self.folder = folder
    package = folder.appending(path: manifest.program)
    context = manifest.kv_cache.context
    prefillChunk = manifest.kv_cache.prefill_chunk
    vocabularySize = manifest.model.vocab_size
    endTokens = Set(manifest.model.eos_token_ids)
    inputs = manifest.core_ml_inputs
  }

  private struct Manifest: Decodable {
    let program: String
    let model: Model
    let kv_cache: Cache
    let core_ml_inputs: CacheInputs?
  }

  private struct Model: Decodable {
    let vocab_size: Int
    let eos_token_ids: [Int32]
  }

  private struct Cache: Decodable {
    let context: Int
    let prefill_chunk: Int
  }
}
