package org.adakv

import java.io.File
import org.json.JSONException
import org.json.JSONObject

/** What a user can mend: one line, with the remedy. */
class AdaKVException(message: String, cause: Throwable? = null) : Exception(message, cause)

/** The folder that `python export.py --target android` wrote. */
class Artifact(val folder: File) {
    private val manifest: JSONObject = readManifest(folder)

    val program: File = present("model.pte")

    /** Absent where the artifact was exported with random weights. */
    val tokenizer: File
        get() = present("tokenizer.json")

    val model: String
        get() = manifest.getJSONObject("model").getString("name")

    val vocabulary: Int
        get() = manifest.getJSONObject("model").getInt("vocab_size")

    val cache: CachePlan = manifest.getJSONObject("kv_cache").let { plan ->
        CachePlan(
            context = plan.getInt("context"),
            chunk = plan.getInt("prefill_chunk"),
            departure = plan.optInt("departure", 1),
            bytes = plan.getLong("bytes_allocated"),
        )
    }

    private fun present(name: String): File = folder.resolve(name).also {
        if (!it.isFile) throw AdaKVException("$folder has no $name: export it again, or copy the whole folder")
    }

    private companion object {
        const val FORMAT = 2

        fun readManifest(folder: File): JSONObject {
            val file = folder.resolve("manifest.json")
            if (!file.isFile) {
                throw AdaKVException("no artifact at $folder: make one with python export.py --target android")
            }
            val manifest = try {
                JSONObject(file.readText())
            } catch (error: JSONException) {
                throw AdaKVException("$file is damaged: copy it again", error)
            }
            val found = manifest.optInt("format")
            if (found != FORMAT) throw AdaKVException("$folder has format $found, not $FORMAT: export it again")
            return manifest
        }
    }
}

/**
 * The manifest's `kv_cache`, as far as a runner needs it.
 *
 * @property context tokens that the cache holds
 * @property chunk most tokens of one step
 * @property departure tokens leave the window at positions that are multiples of it, and no step crosses one
 * @property bytes of the whole cache
 */
data class CachePlan(val context: Int, val chunk: Int, val departure: Int, val bytes: Long) {
    /** Sizes of the steps that append [count] tokens from [position] on. */
    fun steps(position: Int, count: Int): Sequence<Int> = sequence {
        var at = position
        while (at < position + count) {
            val toDeparture = if (departure > 1) departure - at % departure else chunk
            val size = minOf(position + count - at, chunk, toDeparture)
            yield(size)
            at += size
        }
    }
}
