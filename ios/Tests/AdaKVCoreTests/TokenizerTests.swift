import Foundation
import XCTest

@testable import AdaKVCore

final class TokenizerTests: XCTestCase {
  private struct Text: Decodable {
    let text: String
    let ids: [Int32]
    let decoded: String
  }

  private struct Chat: Decodable {
    let messages: [ChatMessage]
    let prompt: String
  }

  func testGivesTheIdsOfThePythonTokenizer() throws {
    let tokenizer = try Tokenizer(Fixtures.data("tokenizer.json"))
    for text in try Fixtures.decode([Text].self, "texts.json") {
      XCTAssertEqual(tokenizer.encode(text.text), text.ids, text.text)
      XCTAssertEqual(tokenizer.decode(text.ids), text.decoded)
    }
  }

  func testAStreamGivesWholeCharacters() throws {
    let tokenizer = try Tokenizer(Fixtures.data("tokenizer.json"))
    let text = "naïve 東京 🙂."
    var stream = StreamDecoder(tokenizer)
    let parts = tokenizer.encode(text).map { stream.push($0) }
    XCTAssertEqual(parts.joined(), text)
    XCTAssertFalse(parts.joined().contains("\u{FFFD}"))
    XCTAssertTrue(parts.contains(""), "some characters take several tokens")
  }

  func testSpecialTokensStayOutOfAnAnswer() throws {
    let tokenizer = try Tokenizer(Fixtures.data("tokenizer.json"))
    let ids = tokenizer.encode("Hi<|im_end|>")
    XCTAssertEqual(tokenizer.decode(ids, skipSpecial: true), "Hi")
    XCTAssertThrowsError(try Tokenizer(Data("{}".utf8)))
  }

  func testRendersTheCheckpointsTemplate() throws {
    for chat in try Fixtures.decode([Chat].self, "chats.json") {
      XCTAssertEqual(renderSmolLM2(chat.messages), chat.prompt)
    }
  }
}
