/// One turn of a conversation.
public struct ChatMessage: Codable, Equatable, Sendable {
  public enum Role: String, Codable, Sendable {
    case system, user, assistant
  }

  public let role: Role
  public let content: String

  public init(role: Role, content: String) {
    self.role = role
    self.content = content
  }
}

/// The prompt of SmolLM2-Instruct for its next answer: what the artifact's chat_template.jinja renders.
public func renderSmolLM2(_ messages: [ChatMessage]) -> String {
  var turns = messages
  if turns.first?.role != .system {
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns.insert(ChatMessage(role: .system, content: system), at: 0)
  }
  let text = turns.map { "<|im_start|>\($0.role.rawValue)\n\($0.content)<|im_end|>\n" }.joined()
  return text + "<|im_start|>assistant\n"
}
