// swift-tools-version: 6.0
// Open this folder in Xcode: an iOS app without a project file. The harness builds and drives the same app.
import AppleProductTypes
import PackageDescription

let package = Package(
  name: "AdaKVChat",
  platforms: [.iOS("18.0")],
  products: [
    .iOSApplication(
      name: "AdaKVChat",
      targets: ["Chat"],
      bundleIdentifier: "org.adakv.chat",
      displayVersion: "1.0",
      bundleVersion: "1",
      supportedDeviceFamilies: [.phone, .pad],
      supportedInterfaceOrientations: [.portrait, .landscapeLeft, .landscapeRight]
    )
  ],
  dependencies: [.package(name: "AdaKV", path: "..")],
  targets: [
    .executableTarget(
      name: "Chat",
      dependencies: [
        .product(name: "AdaKVCore", package: "AdaKV"),
        .product(name: "AdaKVCoreML", package: "AdaKV"),
      ],
      path: "Sources"
    )
  ],
  swiftLanguageModes: [.v5]
)
