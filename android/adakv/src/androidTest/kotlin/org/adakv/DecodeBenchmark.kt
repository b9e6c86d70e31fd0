package org.adakv

import android.os.Build
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import java.io.File
import org.junit.Assert.assertEquals
import org.junit.Assume.assumeTrue
import org.junit.Test
import org.junit.runner.RunWith

/**
 * Times the artifact at /data/local/tmp/adakv/artifact inside an app's process, and writes the runner's JSON, an object
 * a line, where Gradle collects it (build/outputs/connected_android_test_additional_output).
 *
 *     adb push artifacts/smollm2-135m-instruct-android /data/local/tmp/adakv/artifact
 *     ./gradlew :adakv:connectedAndroidTest -Pandroid.testInstrumentationRunnerArguments.tg=64
 */
@RunWith(AndroidJUnit4::class)
class DecodeBenchmark {
    private val arguments = InstrumentationRegistry.getArguments()

    @Test
    fun decodeAndPrefill() {
        val folder = File(arguments.getString("artifact", "/data/local/tmp/adakv/artifact"))
        assumeTrue("push an artifact to $folder first", folder.isDirectory)
        val artifact = Artifact(folder)
        val start = System.nanoTime()
        ProgramModel(artifact).use { model ->
            val loadNs = System.nanoTime() - start
            val loaded = memory()
            val tokens = LongArray(TEXT) { (FIRST + it).toLong() }
            for (test in tests()) {
                val times = model.benchmark(test, tokens)
                assertEquals(test.tg, times.decodeNs.size)
                val platform = "Android ${Build.VERSION.RELEASE}, ${Build.MANUFACTURER} ${Build.MODEL}"
                output().appendText("${report(test, times, start, loadNs, loaded, memory(), model, platform)}\n")
            }
        }
    }

    private fun tests(): List<BenchmarkTest> = listOf(
        BenchmarkTest(pp = number("pp", 128), tg = 0, depth = 0),
        BenchmarkTest(pp = 0, tg = number("tg", 64), depth = 0),
        BenchmarkTest(pp = 0, tg = number("tg", 64), depth = number("depth", 512)),
    )

    private fun number(name: String, normal: Int): Int = arguments.getString(name)?.toInt() ?: normal

    private fun memory() = memoryUse(File("/proc/self/status").readText())

    private fun output(): File {
        val collected = arguments.getString("additionalTestOutputDir")
        val folder = collected?.let(::File) ?: InstrumentationRegistry.getInstrumentation().targetContext.filesDir
        return folder.resolve("adakv-run.jsonl")
    }

    private companion object {
        const val FIRST = 1000 // any tokens: what is measured does not depend on what they say
        const val TEXT = 256
    }
}
