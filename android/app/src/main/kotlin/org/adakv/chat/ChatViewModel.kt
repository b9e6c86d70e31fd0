package org.adakv.chat

import android.app.Application
import androidx.lifecycle.AndroidViewModel
import androidx.lifecycle.viewModelScope
import java.io.File
import kotlin.concurrent.thread
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.asStateFlow
import kotlinx.coroutines.flow.onCompletion
import kotlinx.coroutines.flow.update
import kotlinx.coroutines.launch
import org.adakv.AdaKVException
import org.adakv.Artifact
import org.adakv.Conversation

/** One line of the conversation. */
data class Message(val text: String, val mine: Boolean)

enum class Phase { LOADING, READY, ANSWERING, FAILED }

/** What the screen shows. [problem]: what is wrong and how to mend it, if [phase] is FAILED. */
data class ChatState(
    val messages: List<Message> = emptyList(),
    val phase: Phase = Phase.LOADING,
    val problem: String? = null,
)

/** The conversation; it survives a turn of the screen, and ends with the activity. */
class ChatViewModel(application: Application) : AndroidViewModel(application) {
    private val mutableState = MutableStateFlow(ChatState())
    val state: StateFlow<ChatState> = mutableState.asStateFlow()

    private var conversation: Conversation? = null
    private var answering: Job? = null

    init {
        viewModelScope.launch {
            orFail {
                conversation = Conversation.open(Artifact(artifactFolder()))
                mutableState.update { it.copy(phase = Phase.READY) }
            }
        }
    }

    fun send(question: String) {
        val conversation = conversation ?: return
        if (state.value.phase != Phase.READY) return
        val turn = listOf(Message(question, mine = true), Message("", mine = false))
        mutableState.update { it.copy(messages = it.messages + turn, phase = Phase.ANSWERING) }
        answering = viewModelScope.launch {
            orFail {
                conversation.ask(question)
                    .onCompletion { mutableState.update { it.copy(phase = Phase.READY) } }
                    .collect { piece -> mutableState.update { it.copy(messages = it.messages.withMore(piece)) } }
            }
        }
    }

    /** End the answer after the current token. */
    fun stop() {
        answering?.cancel()
    }

    override fun onCleared() {
        conversation?.let { thread(name = "close") { it.close() } } // it waits for the step that runs
    }

    private suspend fun orFail(block: suspend () -> Unit) {
        try {
            block()
        } catch (cancelled: CancellationException) {
            throw cancelled
        } catch (error: AdaKVException) {
            mutableState.update { it.copy(phase = Phase.FAILED, problem = error.message) }
        }
    }

    /** Where `adb push` put it. */
    private fun artifactFolder(): File {
        val own = getApplication<Application>().getExternalFilesDir(null)?.resolve("artifact")
        return own?.takeIf(File::isDirectory) ?: File("/data/local/tmp/adakv/artifact")
    }
}

private fun List<Message>.withMore(piece: String): List<Message> =
    dropLast(1) + last().let { it.copy(text = it.text + piece) }
