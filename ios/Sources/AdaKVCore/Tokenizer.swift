import Foundation

/// Byte-level BPE with the content of a `tokenizer.json`, as SmolLM's: digits alone, then GPT-2's pattern, then merges.
///
/// Nothing is added to a text. Special tokens written in it, such as `<|im_start|>`, become their single ids.
public struct Tokenizer: Sendable {
  private struct Pair: Hashable {
    let left: Int32
    let right: Int32
  }

  private struct Merge {
    let rank: Int
    let token: Int32
  }

  /// What an id stands for.
  private var bytesOfToken: [Int32: [UInt8]] = [:]
  /// nil for a byte that the vocabulary lacks: it vanishes.
  private var tokenOfByte: [Int32?] = []
  private var merges: [Pair: Merge] = [:]
  /// Longest first.
  private var special: [(content: String, token: Int32)] = []
  private let specialTokens: Set<Int32>
  private let pattern: NSRegularExpression

  /// data: the content of the artifact's tokenizer.json. Throws for a tokenizer of another kind.
  public init(_ data: Data) throws {
    guard let file = try? JSONDecoder().decode(File.self, from: data), file.model.type == "BPE" else {
      throw AdaKVError("tokenizer.json holds no byte-level BPE tokenizer: use another library for this model")
    }
    var tokenOfBytes: [[UInt8]: Int32] = [:]
    for (text, token) in file.model.vocab {
      guard let bytes = Self.bytes(text) else { continue }  // a special token
      bytesOfToken[token] = bytes
      tokenOfBytes[bytes] = token
    }
    tokenOfByte = (UInt8.min...UInt8.max).map { tokenOfBytes[[$0]] }
    for (rank, merge) in file.model.merges.enumerated() {
      guard let left = Self.bytes(merge.left), let right = Self.bytes(merge.right),
        let a = tokenOfBytes[left], let b = tokenOfBytes[right], let token = tokenOfBytes[left + right]
      else { continue }
      merges[Pair(left: a, right: b)] = Merge(rank: rank, token: token)
    }
    special = file.added_tokens.map { ($0.content, $0.id) }.sorted { $0.content.count > $1.content.count }
    for (content, token) in special { bytesOfToken[token] = Array(content.utf8) }
    specialTokens = Set(special.map(\.token))
    pattern = try NSRegularExpression(pattern: Self.gpt2)
  }

  public func encode(_ text: String) -> [Int32] {
    var tokens: [Int32] = []
    var plain = text.startIndex
    var at = text.startIndex
    while at < text.endIndex {
      if let (content, token) = special.first(where: { text[at...].hasPrefix($0.content) }) {
        tokens += encodePlain(text[plain..<at])
        tokens.append(token)
        at = text.index(at, offsetBy: content.count)
        plain = at
      } else {
        at = text.index(after: at)
      }
    }
    return tokens + encodePlain(text[plain...])
  }

  /// Bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
  public func decode(_ tokens: [Int32], skipSpecial: Bool = false) -> String {
    String(decoding: tokens.flatMap { bytes(of: $0, skipSpecial: skipSpecial) }, as: UTF8.self)
  }

  func bytes(of token: Int32, skipSpecial: Bool) -> [UInt8] {
    skipSpecial && specialTokens.contains(token) ? [] : bytesOfToken[token] ?? []
  }

  private func encodePlain(_ text: Substring) -> [Int32] {
    pieces(text).flatMap { merged($0.utf8.compactMap { tokenOfByte[Int($0)] }) }
  }

  /// Every digit alone; what lies between them cut by the pattern.
  private func pieces(_ text: Substring) -> [String] {
    var pieces: [String] = []
    let scalars = text.unicodeScalars
    var start = scalars.startIndex
    var at = start
    while at < scalars.endIndex {
      let next = scalars.index(after: at)
      if scalars[at].properties.numericType != nil {
        pieces += words(text[start..<at]) + [String(scalars[at..<next])]
        start = next
      }
      at = next
    }
    return pieces + words(text[start...])
  }

  private func words(_ text: Substring) -> [String] {
    let string = NSString(string: String(text))  // its ranges may part a letter from its accents, as the pattern does
    let all = NSRange(location: 0, length: string.length)
    return pattern.matches(in: string as String, range: all).map { string.substring(with: $0.range) }
  }

  /// Joins the pair that was learned first, until none is left.
  private func merged(_ bytes: [Int32]) -> [Int32] {
    var tokens = bytes
    while tokens.count > 1 {
      var best: (place: Int, merge: Merge)?
      for i in 0..<tokens.count - 1 {
        guard let merge = merges[Pair(left: tokens[i], right: tokens[i + 1])] else { continue }
        if best == nil || merge.rank < best!.merge.rank { best = (i, merge) }
      }
      guard let best else { break }
      tokens.replaceSubrange(best.place...best.place + 1, with: [best.merge.token])
    }
    return tokens
  }

  /// GPT-2's, with Unicode's white space spelled out: this engine's \s is narrower.
  private static let gpt2 =
    #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+"#
    + #"|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+"#

  /// GPT-2 writes a byte as a printable character: itself if it is one, else the next one from U+0100 on.
  private static let byteOfScalar: [UnicodeScalar: UInt8] = {
    var table: [UnicodeScalar: UInt8] = [:]
    var other: UInt32 = 0x100
    for byte in UInt8.min...UInt8.max {
      switch byte {
      case 0x21...0x7E, 0xA1...0xAC, 0xAE...0xFF: table[UnicodeScalar(byte)] = byte
      default:
        table[UnicodeScalar(other)!] = byte
        other += 1
      }
    }
    return table
  }()

  /// nil for a text with characters that stand for no byte.
  private static func bytes(_ text: String) -> [UInt8]? {
    var bytes: [UInt8] = []
    for scalar in text.unicodeScalars {
      guard let byte = byteOfScalar[scalar] else { return nil }
      bytes.append(byte)
    }
    return bytes
  }

  private struct File: Decodable {
    struct Added: Decodable {
      let id: Int32
      let content: String
    }

    struct Model: Decodable {
      let type: String
      let vocab: [String: Int32]
      let merges: [Rule]
    }

    /// Both forms that are in use: ["a", "b"] and "a b".
    struct Rule: Decodable {
      let left: String
      let right: String

      init(from decoder: Decoder) throws {
        let value = try decoder.singleValueContainer()
        let parts: [String]
        if let pair = try? value.decode([String].self) {
          parts = pair
        } else {
          parts = try value.decode(String.self).split(separator: " ").map(String.init)
        }
        guard parts.count == 2 else {
          throw DecodingError.dataCorruptedError(in: value, debugDescription: "a merge has two parts")
        }
        (left, right) = (parts[0], parts[1])
      }
    }

    let added_tokens: [Added]
    let model: Model
  }
}

/// Text of a stream of tokens: what is not yet a whole character waits for its rest.
public struct StreamDecoder {
  private let tokenizer: Tokenizer
  private var waiting: [UInt8] = []

  public init(_ tokenizer: Tokenizer) {
    self.tokenizer = tokenizer
  }

  /// The text that became complete with this token; special tokens give none.
  public mutating func push(_ token: Int32) -> String {
    waiting += tokenizer.bytes(of: token, skipSpecial: true)
    let whole = waiting.count - Self.unfinished(waiting)
    defer { waiting.removeFirst(whole) }
    return String(decoding: waiting[..<whole], as: UTF8.self)
  }

  /// Bytes at the end that begin a character and do not end it.
  private static func unfinished(_ bytes: [UInt8]) -> Int {
    for (back, byte) in bytes.reversed().prefix(3).enumerated() where byte & 0xC0 != 0x80 {
      let length = byte >= 0xF0 ? 4 : byte >= 0xE0 ? 3 : byte >= 0xC0 ? 2 : 1
      return back + 1 < length ? back + 1 : 0
    }
    return 0
  }
}
