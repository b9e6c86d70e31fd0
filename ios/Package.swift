// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "AdaKV",
  platforms: [.iOS(.v18), .macOS(.v15)],
  products: [.library(name: "AdaKVCore", targets: ["AdaKVCore"])],
  targets: [
    // No framework of Apple's but Foundation: builds and is tested on Linux too.
    .target(name: "AdaKVCore"),
    .testTarget(name: "AdaKVCoreTests", dependencies: ["AdaKVCore"], resources: [.copy("Fixtures")]),
  ],
  swiftLanguageModes: [.v5]
)

#if os(macOS)
  package.products += [
    .library(name: "AdaKVCoreML", targets: ["AdaKVCoreML"]),
    .executable(name: "adakv-run", targets: ["adakv-run"]),
  ]
  package.targets += [
    .target(name: "AdaKVCoreML", dependencies: ["AdaKVCore"]),
    .executableTarget(name: "adakv-run", dependencies: ["AdaKVCoreML"]),
    .testTarget(name: "AdaKVBenchmarks", dependencies: ["AdaKVCoreML"]),
  ]
#endif
