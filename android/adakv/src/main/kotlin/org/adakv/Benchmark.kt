package org.adakv

import org.json.JSONArray
import org.json.JSONObject

/** One test of llama-bench's kind: prefill [pp] tokens, then decode [tg], with [depth] tokens in the cache before. */
data class BenchmarkTest(val pp: Int, val tg: Int, val depth: Int)

/** Times in nanoseconds of a monotonic clock, [startedNs] when each part began; docs/bench-schema.md has the fields. */
data class BenchmarkTimes(
    val startedNs: Map<String, Long>,
    val coldStepNs: Long,
    val fillNs: Long,
    val prefillNs: List<Long>,
    val prefillTokens: List<Int>,
    val decodeNs: List<Long>,
    val firstTokenNs: Long?,
    val finishReason: String,
)

/**
 * Runs one test. [tokens] are fed in turn, from the start again where they are too few. Before it, apart, a warm-up of
 * one chunk and one token on the same cache, which is emptied after it. A full context ends the test early.
 */
fun StepModel.benchmark(test: BenchmarkTest, tokens: LongArray, now: () -> Long = System::nanoTime): BenchmarkTimes {
    require(tokens.isNotEmpty()) { "no tokens to feed" }
    var fed = 0
    var full = false

    /** Feeds up to [count] tokens while they fit: nanoseconds and size of each step; a single one chooses the next. */
    fun feed(count: Int, single: Boolean = false): List<Pair<Long, Int>> {
        val fitting = minOf(count, cache.context - position)
        full = full || fitting < count
        val sizes = if (single) generateSequence { 1 }.take(fitting) else cache.steps(position, fitting)
        return sizes.map { size ->
            val next = LongArray(size) { tokens[(fed + it) % tokens.size] }
            fed += size
            val start = now()
            val logits = step(next)
            if (single) likeliest(logits)
            now() - start to size
        }.toList()
    }

    val warmUp = now()
    reset()
    val cold = feed(cache.chunk).first().first
    feed(1, single = true)
    reset()
    fed = 0
    full = false

    val filling = now()
    feed(test.depth)
    val start = now()
    val prefill = feed(test.pp)
    val decoding = now()
    val decode = feed(test.tg, single = true)
    return BenchmarkTimes(
        startedNs = mapOf("warm_up" to warmUp, "fill" to filling, "prefill" to start, "decode" to decoding),
        coldStepNs = cold,
        fillNs = start - filling,
        prefillNs = prefill.map { it.first },
        prefillTokens = prefill.map { it.second },
        decodeNs = decode.map { it.first },
        firstTokenNs = if (prefill.isEmpty()) null else decoding - start,
        finishReason = if (full) "context" else "done",
    )
}

private fun likeliest(logits: FloatArray): Int = logits.indices.maxBy { logits[it] }

/** Resident memory of the process in bytes, from the text of /proc/self/status; what it does not tell is left out. */
fun memoryUse(status: String): Map<String, Long> {
    val fields = mapOf("VmRSS" to "rss", "RssAnon" to "anonymous", "RssFile" to "file", "VmHWM" to "peak")
    return status.lineSequence().mapNotNull { line ->
        val name = fields[line.substringBefore(':')] ?: return@mapNotNull null
        name to line.substringAfter(':').trim().substringBefore(' ').toLong() * 1024
    }.toMap()
}

/**
 * The object of `adakv_runner --bench`, for a test that was run inside an app: what only the runner knows (clocks,
 * tokens in each tier) is empty.
 */
fun report(
    test: BenchmarkTest,
    times: BenchmarkTimes,
    loadStartedNs: Long,
    loadNs: Long,
    loaded: Map<String, Long>,
    end: Map<String, Long>,
    model: StepModel,
    platform: String,
): JSONObject = JSONObject()
    .put("schema", "adakv-run-1")
    .put("runner", JSONObject().put("isa", JSONObject.NULL).put("threads", JSONObject.NULL)
        .put("cpu_mask", JSONObject.NULL).put("platform", platform))
    .put("test", JSONObject().put("pp", test.pp).put("tg", test.tg).put("depth", test.depth))
    .put("load_ns", loadNs)
    .put("cold_step_ns", times.coldStepNs)
    .put("fill_ns", times.fillNs)
    .put("prefill_ns", JSONArray(times.prefillNs))
    .put("prefill_tokens", JSONArray(times.prefillTokens))
    .put("decode_ns", JSONArray(times.decodeNs))
    .put("first_token_ns", times.firstTokenNs ?: JSONObject.NULL)
    .put("started_ns", JSONObject(times.startedNs + ("load" to loadStartedNs)))
    .put("clocks_khz", JSONObject().put("cores", JSONArray()).put("before", JSONArray()).put("after", JSONArray()))
    .put("memory", JSONObject().put("loaded", JSONObject(loaded - "peak")).put("end", JSONObject(end - "peak"))
        .put("peak", end["peak"] ?: 0))
    .put("cache", JSONObject().put("bytes", model.cache.bytes).put("tokens_by_tier", JSONArray())
        .put("position", model.position))
    .put("finish_reason", times.finishReason)
