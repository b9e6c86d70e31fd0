import AdaKVCore
import SwiftUI

struct ChatView: View {
  let chat: Chat
  @State private var draft = ""

  var body: some View {
    NavigationStack {
      conversation
        .safeAreaInset(edge: .bottom) { input }
        .navigationTitle("AdaKV")
        .navigationBarTitleDisplayMode(.inline)
    }
    .task { await chat.load() }
  }

  private var conversation: some View {
    ScrollView {
      LazyVStack(alignment: .leading, spacing: 12) {
        ForEach(chat.messages.indices, id: \.self) { Bubble(message: chat.messages[$0]) }
        switch chat.state {
        case .loading: ProgressView("Loading the model")
        case .failed(let reason): Text(reason).foregroundStyle(.red)
        case .ready, .answering: EmptyView()
        }
      }
      .padding()
    }
    .defaultScrollAnchor(.bottom)
  }

  private var input: some View {
    HStack {
      TextField("Message", text: $draft, axis: .vertical)
        .textFieldStyle(.roundedBorder)
        .onSubmit(send)
      if chat.state == .answering {
        Button("Stop", systemImage: "stop.circle.fill", action: chat.stop)
      } else {
        Button("Send", systemImage: "arrow.up.circle.fill", action: send)
          .disabled(chat.state != .ready || draft.isEmpty)
      }
    }
    .labelStyle(.iconOnly)
    .font(.title2)
    .padding()
    .background(.bar)
  }

  private func send() {
    guard chat.state == .ready, !draft.isEmpty else { return }
    chat.send(draft)
    draft = ""
  }
}

private struct Bubble: View {
  let message: ChatMessage

  var body: some View {
    Text(message.content)
      .padding(10)
      .background(message.role == .user ? Color.accentColor.opacity(0.2) : Color.gray.opacity(0.15))
      .clipShape(RoundedRectangle(cornerRadius: 14))
      .frame(maxWidth: .infinity, alignment: message.role == .user ? .trailing : .leading)
      .textSelection(.enabled)
  }
}
