package org.adakv

/**
 * Prompts of SmolLM2-Instruct, turn by turn: what the artifact's chat_template.jinja renders, cut where the cache
 * already holds the rest.
 */
object SmolLM2Chat {
    const val SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

    /** Texts of the tokens that end an answer. LlmModule passes them on like any other. */
    val ends = setOf("<|im_end|>", "<|endoftext|>")

    fun firstTurn(question: String, system: String = SYSTEM): String =
        turn("system", system) + turn("user", question) + ANSWER

    /** After an answer, whose end token was chosen but not fed. */
    fun nextTurn(question: String): String = "<|im_end|>\n" + turn("user", question) + ANSWER

    private fun turn(role: String, content: String) = "<|im_start|>$role\n$content<|im_end|>\n"

    private const val ANSWER = "<|im_start|>assistant\n"
}
