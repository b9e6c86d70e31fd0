package org.adakv

import org.pytorch.executorch.ExecuTorchRuntime

/** The operators that an exported program calls, which must be linked into the app's libexecutorch.so. */
object Operators {
    private val needed = listOf(
        "depart", "assign", "attend", "observe", "norm_linear", "add_linear", "swiglu_linear", "table_lookup",
        "table_product",
    ).map { "adakv::$it.out" }

    /** Those that the app's library lacks. */
    fun missing(registered: Collection<String> = ExecuTorchRuntime.getRegisteredOps().asList()): List<String> =
        needed - registered.toSet()

    /** Throws with the remedy, where a program would fail with "missing operator" only. */
    fun require() {
        val missing = missing()
        if (missing.isNotEmpty()) {
            throw AdaKVException(
                "libexecutorch.so lacks ${missing.joinToString()}: it is not the one that :adakv builds;" +
                    " remove org.pytorch:executorch-android from the app's dependencies",
            )
        }
    }
}
