import AdaKVCoreML
import Foundation

/// A run that the harness asked for when it launched the app: the words of `adakv-run` in an environment variable, its
/// output in files, because a phone's console is not to be relied on.
struct HarnessRun {
  /// JSON: {"id": ..., "arguments": [...]}.
  private static let variable = "ADAKV_RUN"

  private struct Request: Decodable {
    let id: String
    let arguments: [String]
  }

  private let request: Request

  /// nil when a person opened the app.
  static let requested: HarnessRun? = {
    guard let text = ProcessInfo.processInfo.environment[variable],
      let request = try? JSONDecoder().decode(Request.self, from: Data(text.utf8))
    else { return nil }
    return HarnessRun(request: request)
  }()

  /// Writes out/started with the run's id, out/stdout, out/stderr and, last, out/status with the id and the exit
  /// status; then ends the app.
  func carryOut() async {
    let folder = URL.documentsDirectory
    let out = folder.appending(path: "out")
    try? FileManager.default.removeItem(at: out)
    try? FileManager.default.createDirectory(at: out, withIntermediateDirectories: true)
    try? Data(request.id.utf8).write(to: out.appending(path: "started"))
    freopen(out.appending(path: "stdout").path, "w", stdout)
    freopen(out.appending(path: "stderr").path, "w", stderr)
    let status = await runCommandLine(request.arguments, in: folder)
    fflush(stdout)
    fflush(stderr)
    try? Data("\(request.id) \(status)".utf8).write(to: out.appending(path: "status"))
    exit(status)
  }
}
