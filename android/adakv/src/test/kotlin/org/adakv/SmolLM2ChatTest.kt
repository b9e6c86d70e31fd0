package org.adakv

import org.junit.Assert.assertEquals
import org.junit.Test

class SmolLM2ChatTest {
    @Test
    fun turnsJoinToTheWholeConversation() {
        val whole = SmolLM2Chat.firstTurn("Hi!") + "Hello." + SmolLM2Chat.nextTurn("And?")
        val expected = "<|im_start|>system\n${SmolLM2Chat.SYSTEM}<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n" +
            "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        assertEquals(expected, whole)
    }
}
