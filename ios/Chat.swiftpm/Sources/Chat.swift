import AdaKVCore
import AdaKVCoreML
import Foundation
import Observation

/// What the screen shows: the conversation, and what the model is doing.
@MainActor
@Observable
final class Chat {
  enum State: Equatable {
    case loading, ready, answering
    case failed(String)
  }

  private(set) var messages: [ChatMessage] = []
  private(set) var state = State.loading
  private var session: ChatSession?
  private var answering: Task<Void, Never>?

  /// Loads the first artifact in Documents/artifacts, where the Files app, the Finder or devicectl put it.
  func load() async {
    guard session == nil else { return }
    do {
      session = try await ChatSession(artifact: try Self.firstArtifact(), temperature: 0.2)
      state = .ready
    } catch {
      state = .failed("\(error)")
    }
  }

  func send(_ text: String) {
    guard let session, state == .ready else { return }
    messages.append(ChatMessage(role: .user, content: text))
    state = .answering
    answering = Task {
      var answer = ""
      do {
        for try await piece in session.answer(to: messages) {
          answer += piece
          show(answer)
        }
        state = .ready
      } catch {
        state = .failed("\(error)")
      }
    }
  }

  func stop() {
    answering?.cancel()
  }

  private func show(_ answer: String) {
    if messages.last?.role == .assistant { messages.removeLast() }
    messages.append(ChatMessage(role: .assistant, content: answer))
  }

  private static func firstArtifact() throws -> Artifact {
    let folder = URL.documentsDirectory.appending(path: "artifacts")
    let found = try? FileManager.default.contentsOfDirectory(at: folder, includingPropertiesForKeys: nil)
    guard let first = found?.sorted(by: { $0.path < $1.path }).first else {
      throw AdaKVError("no artifact yet: copy a folder of python export.py --target ios to Documents/artifacts")
    }
    return try Artifact(folder: first)
  }
}
