package org.adakv

import java.io.Closeable
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A loaded program, fed with token ids in order: for measuring, and for apps with a tokenizer of their own. */
interface StepModel {
    val cache: CachePlan

    /** Tokens held. */
    val position: Int

    /** Start a new sequence with the next step. */
    fun reset()

    /** Append 1 to `cache.chunk` tokens; logits (vocabulary) after the last. */
    fun step(tokens: LongArray): FloatArray
}

/** On ExecuTorch's [Module]. */
class ProgramModel(artifact: Artifact, threads: Int = 0) : StepModel, Closeable {
    override val cache = artifact.cache
    override var position = 0
        private set

    private val module: Module

    init {
        Operators.require()
        module = Module.load(artifact.program.path, Module.LOAD_MODE_MMAP, threads)
        module.loadMethod("forward")
    }

    /** Position 0 resets the cache inside the program. */
    override fun reset() {
        position = 0
    }

    override fun step(tokens: LongArray): FloatArray {
        if (position + tokens.size > cache.context) {
            throw AdaKVException("context full: ${position + tokens.size} tokens do not fit ${cache.context}")
        }
        val ids = Tensor.fromBlob(tokens, longArrayOf(1, tokens.size.toLong()))
        val start = Tensor.fromBlob(longArrayOf(position.toLong()), longArrayOf(1))
        val logits = module.forward(EValue.from(ids), EValue.from(start)).first().toTensor().dataAsFloatArray
        position += tokens.size
        return logits
    }

    override fun close() = module.close()
}
