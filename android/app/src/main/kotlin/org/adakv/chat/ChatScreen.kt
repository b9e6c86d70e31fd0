package org.adakv.chat

import androidx.compose.foundation.layout.Arrangement
import androidx.compose.foundation.layout.Box
import androidx.compose.foundation.layout.Column
import androidx.compose.foundation.layout.Row
import androidx.compose.foundation.layout.fillMaxSize
import androidx.compose.foundation.layout.fillMaxWidth
import androidx.compose.foundation.layout.imePadding
import androidx.compose.foundation.layout.padding
import androidx.compose.foundation.lazy.LazyColumn
import androidx.compose.foundation.lazy.items
import androidx.compose.material3.Button
import androidx.compose.material3.MaterialTheme
import androidx.compose.material3.OutlinedTextField
import androidx.compose.material3.Scaffold
import androidx.compose.material3.Surface
import androidx.compose.material3.Text
import androidx.compose.runtime.Composable
import androidx.compose.runtime.getValue
import androidx.compose.runtime.mutableStateOf
import androidx.compose.runtime.saveable.rememberSaveable
import androidx.compose.runtime.setValue
import androidx.compose.ui.Alignment
import androidx.compose.ui.Modifier
import androidx.compose.ui.res.stringResource
import androidx.compose.ui.unit.dp

@Composable
fun ChatScreen(state: ChatState, onSend: (String) -> Unit, onStop: () -> Unit) {
    Scaffold { padding ->
        Column(Modifier.fillMaxSize().padding(padding).imePadding().padding(12.dp)) {
            LazyColumn(
                modifier = Modifier.weight(1f).fillMaxWidth(),
                reverseLayout = true,
                verticalArrangement = Arrangement.spacedBy(8.dp, Alignment.Bottom),
            ) {
                items(state.messages.asReversed()) { Bubble(it) }
            }
            Status(state)
            Input(state.phase, onSend, onStop)
        }
    }
}

@Composable
private fun Bubble(message: Message) {
    val colors = MaterialTheme.colorScheme
    Box(Modifier.fillMaxWidth(), if (message.mine) Alignment.CenterEnd else Alignment.CenterStart) {
        Surface(
            color = if (message.mine) colors.primaryContainer else colors.surfaceVariant,
            shape = MaterialTheme.shapes.medium,
        ) {
            Text(message.text, Modifier.padding(10.dp))
        }
    }
}

@Composable
private fun Status(state: ChatState) {
    when (state.phase) {
        Phase.LOADING -> Text(stringResource(R.string.loading))
        Phase.FAILED -> Text(state.problem.orEmpty(), color = MaterialTheme.colorScheme.error)
        Phase.READY, Phase.ANSWERING -> Unit
    }
}

@Composable
private fun Input(phase: Phase, onSend: (String) -> Unit, onStop: () -> Unit) {
    var draft by rememberSaveable { mutableStateOf("") }
    Row(verticalAlignment = Alignment.CenterVertically, horizontalArrangement = Arrangement.spacedBy(8.dp)) {
        OutlinedTextField(
            value = draft,
            onValueChange = { draft = it },
            modifier = Modifier.weight(1f),
            placeholder = { Text(stringResource(R.string.message)) },
        )
        if (phase == Phase.ANSWERING) {
            Button(onClick = onStop) { Text(stringResource(R.string.stop)) }
        } else {
            Button(
                onClick = {
                    onSend(draft.trim())
                    draft = ""
                },
                enabled = phase == Phase.READY && draft.isNotBlank(),
            ) { Text(stringResource(R.string.send)) }
        }
    }
}
