import AdaKVCore
import CoreML
import Foundation

/// A conversation with an artifact: keeps the cache between turns, and feeds it what is new.
public actor ChatSession {
  private let model: LanguageModel
  private let tokenizer: Tokenizer
  private var sampler: Sampler
  /// What the cache holds.
  private var fed: [Int32] = []

  /// Loads the artifact (seconds). temperature 0 takes the likeliest token.
  public init(
    artifact: Artifact, computeUnits: MLComputeUnits = .cpuAndNeuralEngine, temperature: Double = 0
  ) async throws {
    let file = artifact.folder.appending(path: "tokenizer.json")
    guard let data = try? Data(contentsOf: file) else {
      throw AdaKVError("\(artifact.folder.path) has no tokenizer.json: export a checkpoint that has a tokenizer")
    }
    tokenizer = try Tokenizer(data)
    model = try await LanguageModel(artifact: artifact, computeUnits: computeUnits)
    sampler = Sampler(temperature: temperature, seed: UInt64.random(in: 0...UInt64.max))
  }

  /// The next answer, piece by piece. Ends early when the stream's reader is cancelled.
  public nonisolated func answer(to messages: [ChatMessage], limit: Int = 512) -> AsyncThrowingStream<String, Error> {
    AsyncThrowingStream { continuation in
      let task = Task {
        do {
          try await self.generate(messages, limit: limit) { continuation.yield($0) }
          continuation.finish()
        } catch {
          continuation.finish(throwing: error)
        }
      }
      continuation.onTermination = { _ in task.cancel() }
    }
  }

  private func generate(_ messages: [ChatMessage], limit: Int, piece: (String) -> Void) throws {
    let prompt = tokenizer.encode(renderSmolLM2(messages))
    if !prompt.starts(with: fed) || prompt.count == fed.count {
      model.reset()
      fed = []
    }
    let new = Array(prompt.dropFirst(fed.count))
    var text = StreamDecoder(tokenizer)
    var made: [Int32] = []
    let ends = model.artifact.endTokens
    do {
      try model.generate(new, limit: limit, endTokens: ends, sampler: &sampler) { token in
        made.append(token)
        piece(text.push(token))
        return !Task.isCancelled
      }
    } catch {
      model.reset()
      fed = []
      throw error
    }
    fed = Array((prompt + made).prefix(model.position))  // the last token chosen may not have been fed
  }
}
