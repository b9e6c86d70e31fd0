// adakv-run: feeds token ids to a Core ML artifact. See adakv-run --help, and docs/bench-schema.md for what it prints.
//
//   swift run -c release adakv-run --artifact ../artifacts/smollm2-135m-instruct-ios --tokens 1,4093,198
//   swift run -c release adakv-run --artifact ... --tokens 1,4093,198 --bench --pp 128 --tg 64 --depth 512

import AdaKVCoreML
import Foundation

// Names are relative to ADAKV_FOLDER where it is set: a simulator gives its processes a folder of its own.
let folder = ProcessInfo.processInfo.environment["ADAKV_FOLDER"] ?? FileManager.default.currentDirectoryPath
exit(await runCommandLine(Array(CommandLine.arguments.dropFirst()), in: URL(filePath: folder)))
