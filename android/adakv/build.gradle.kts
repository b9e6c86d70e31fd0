import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.library)
    alias(libs.plugins.kotlin.android)
}

// ExecuTorch's Kotlin classes come from the checkout that its JNI library is built from: both must be of one version.
val executorch = rootProject.file(providers.gradleProperty("executorch.dir").get())
val executorchAndroid = executorch.resolve("extension/android/executorch_android")

android {
    namespace = "org.adakv"
    compileSdk = 36
    ndkVersion = "28.2.13676358"

    defaultConfig {
        minSdk = 26
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
        consumerProguardFiles("consumer-rules.pro", executorchAndroid.resolve("consumer-proguard-rules.pro"))
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64") // phones; the emulator
        }
        externalNativeBuild {
            cmake {
                arguments += listOf("-DEXECUTORCH_SOURCE=$executorch", "-DANDROID_STL=c++_shared")
                arguments += listOf("-DCMAKE_BUILD_TYPE=Release", "-DANDROID_SUPPORT_FLEXIBLE_PAGE_SIZES=ON")
                targets += "executorch_jni"
            }
        }
    }

    externalNativeBuild {
        cmake {
            path = rootProject.file("jni/CMakeLists.txt")
            version = "3.31.6"
        }
    }

    sourceSets {
        named("main") {
            kotlin.srcDir(executorchAndroid.resolve("src/main/java"))
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }

    packaging {
        jniLibs.pickFirsts += "**/libc++_shared.so" // fbjni brings one, too
    }
}

kotlin {
    compilerOptions {
        jvmTarget = JvmTarget.JVM_17
    }
}

dependencies {
    api(libs.coroutines.android)
    implementation(libs.core.ktx)
    implementation(libs.fbjni)
    implementation(libs.nativeloader)

    testImplementation(libs.junit)
    testImplementation(libs.json) // Android's own is a stub outside a device

    androidTestImplementation(libs.androidx.test.runner)
    androidTestImplementation(libs.androidx.test.junit)
}
