// swift-tools-version: 6.0
import PackageDescription

let package = Package(
  name: "AdaKV",
  platforms: [.iOS(.v18), .macOS(.v15)],
  products: [
    .library(name: "AdaKV", targets: ["AdaKV"]),
    .executable(name: "adakv-run", targets: ["adakv-run"]),
  ],
  targets: [
    .target(name: "AdaKV"),
    .executableTarget(name: "adakv-run", dependencies: ["AdaKV"]),
  ],
  swiftLanguageModes: [.v5]
)
