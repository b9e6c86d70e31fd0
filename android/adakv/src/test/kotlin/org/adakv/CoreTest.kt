package org.adakv

import java.io.File
import kotlin.io.path.createTempDirectory
import org.json.JSONObject
import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Assert.assertTrue
import org.junit.Test

/** Likes nothing in particular; every step costs as many clock ticks as it has tokens. */
private class Counter : StepModel {
    override val cache = CachePlan(context = 30, chunk = 8, departure = 8, bytes = 7)
    override var position = 0
    val fed = mutableListOf<Long>()
    var clock = 0L

    override fun reset() {
        position = 0
        fed.clear()
    }

    override fun step(tokens: LongArray): FloatArray {
        assertTrue("no step crosses a departure", position / 8 == (position + tokens.size - 1) / 8)
        position += tokens.size
        fed += tokens.asList()
        clock += tokens.size
        return FloatArray(4)
    }
}

class CoreTest {
    @Test
    fun stepsEndWhereTokensLeaveTheWindow() {
        val plan = CachePlan(context = 100, chunk = 32, departure = 32, bytes = 0)
        assertEquals(listOf(22, 32, 6), plan.steps(10, 60).toList())
        assertEquals(listOf(4, 4, 1), CachePlan(100, chunk = 4, departure = 1, bytes = 0).steps(3, 9).toList())
        assertEquals(emptyList<Int>(), plan.steps(0, 0).toList())
    }

    @Test
    fun aBenchmarkTimesEveryStepAfterItsDepth() {
        val model = Counter()
        val times = model.benchmark(BenchmarkTest(pp = 9, tg = 3, depth = 10), longArrayOf(1, 2, 3)) { model.clock }
        assertEquals(8, times.coldStepNs)
        assertEquals(10, times.fillNs)
        assertEquals(listOf(6, 3), times.prefillTokens)
        assertEquals(listOf(6L, 3L), times.prefillNs)
        assertEquals(listOf(1L, 1L, 1L), times.decodeNs)
        assertEquals(9L, times.firstTokenNs)
        assertEquals("done", times.finishReason)
        assertEquals(List(22) { it % 3 + 1L }, model.fed)
    }

    @Test
    fun aFullContextEndsATest() {
        val model = Counter()
        val times = model.benchmark(BenchmarkTest(pp = 0, tg = 5, depth = 28), longArrayOf(1)) { model.clock }
        assertEquals(2, times.decodeNs.size)
        assertEquals(null, times.firstTokenNs)
        assertEquals("context", times.finishReason)
    }

    @Test
    fun theReportHasTheFieldsOfTheSchema() {
        val model = Counter()
        val test = BenchmarkTest(pp = 0, tg = 2, depth = 0)
        val memory = memoryUse("Name:\tapp\nVmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\nRssAnon:\t 512 kB\n")
        assertEquals(mapOf("peak" to 2097152L, "rss" to 1048576L, "anonymous" to 524288L), memory)
        val times = model.benchmark(test, longArrayOf(1)) { model.clock }
        val fields = JSONObject(report(test, times, 1, 5, memory, memory, model, "test").toString())
        assertEquals(
            setOf(
                "schema", "runner", "test", "load_ns", "cold_step_ns", "fill_ns", "prefill_ns", "prefill_tokens",
                "decode_ns", "first_token_ns", "started_ns", "clocks_khz", "memory", "cache", "finish_reason",
            ),
            fields.keys().asSequence().toSet(),
        )
        assertTrue(fields.isNull("first_token_ns"))
        assertEquals(2, fields.getJSONArray("decode_ns").length())
        assertEquals(2097152L, fields.getJSONObject("memory").getLong("peak"))
        assertEquals(1L, fields.getJSONObject("started_ns").getLong("load"))
    }

    @Test
    fun aFolderThatIsNoArtifactSaysSo() {
        val folder = createTempDirectory().toFile()
        assertEquals("make one with python export.py --target android", failure(folder).substringAfter(": "))
        folder.resolve("manifest.json").writeText("{")
        assertTrue(failure(folder).endsWith("is damaged: copy it again"))
        folder.resolve("manifest.json").writeText("""{"format": 1}""")
        assertTrue(failure(folder).contains("has format 1, not 2"))
    }

    @Test
    fun theOperatorsOfAnotherLibraryAreMissed() {
        assertTrue("adakv::attend.out" in Operators.missing(listOf("aten::add.out")))
    }

    private fun failure(folder: File): String =
        assertThrows(AdaKVException::class.java) { Artifact(folder) }.message.orEmpty()
}
