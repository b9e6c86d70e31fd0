import SwiftUI

@main
struct ChatApp: App {
  @State private var chat = Chat()

  var body: some Scene {
    WindowGroup {
      if let run = HarnessRun.requested {
        ProgressView("Measuring").task { await run.carryOut() }
      } else {
        ChatView(chat: chat)
      }
    }
  }
}
