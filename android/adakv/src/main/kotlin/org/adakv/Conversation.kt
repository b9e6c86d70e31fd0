package org.adakv

import java.io.Closeable
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.channels.awaitClose
import kotlinx.coroutines.channels.trySendBlocking
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.callbackFlow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext
import org.pytorch.executorch.ExecutorchRuntimeException
import org.pytorch.executorch.extension.llm.LlmCallback
import org.pytorch.executorch.extension.llm.LlmGenerationConfig
import org.pytorch.executorch.extension.llm.LlmModule

/**
 * A conversation with an artifact, on ExecuTorch's [LlmModule]. The cache is kept between turns: a turn feeds its own
 * text only. One answer at a time.
 */
class Conversation private constructor(private val module: LlmModule, private val temperature: Float) : Closeable {
    private val running = ReentrantLock()
    private var begun = false

    /**
     * The answer to [question], piece by piece, until the model ends it or the cache is full. Cancelling the collector
     * stops the model after the current token.
     */
    fun ask(question: String): Flow<String> = callbackFlow {
        val prompt = if (begun) SmolLM2Chat.nextTurn(question) else SmolLM2Chat.firstTurn(question)
        begun = true
        val callback = object : LlmCallback {
            override fun onResult(result: String) {
                if (result !in SmolLM2Chat.ends) trySendBlocking(result)
            }
        }
        launch {
            try {
                running.withLock { module.generate(prompt, config(), callback) }
                close()
            } catch (error: ExecutorchRuntimeException) {
                close(AdaKVException("the model failed (${error.message}): start a new conversation", error))
            }
        }
        awaitClose { module.stop() }
    }.flowOn(Dispatchers.Default)

    /** Forget everything said. */
    fun reset() {
        module.resetContext()
        begun = false
    }

    /** Stops an answer and waits for its current step, so not for the main thread. */
    override fun close() {
        module.stop()
        running.withLock { module.close() }
    }

    private fun config(): LlmGenerationConfig =
        LlmGenerationConfig.create().echo(false).temperature(temperature).build()

    companion object {
        /** Loads an artifact, off the calling thread (seconds). [temperature]: 0 (the likeliest token) to 1. */
        suspend fun open(artifact: Artifact, temperature: Float = 0f): Conversation = withContext(Dispatchers.IO) {
            Operators.require()
            try {
                val module = LlmModule(artifact.program.path, artifact.tokenizer.path, temperature)
                module.load()
                Conversation(module, temperature)
            } catch (error: ExecutorchRuntimeException) {
                throw AdaKVException("ExecuTorch cannot load ${artifact.program} (${error.message})", error)
            }
        }
    }
}
