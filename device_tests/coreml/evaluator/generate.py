"""python -m device_tests.coreml.evaluator.generate: text from a Core ML artifact, on any machine.

Runs the saved `.mlpackage` in the evaluator: prefill in chunks, then one token at a time, always the likeliest. It
shows what the package computes; how fast is no measure of a phone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adakv_model.command_line import HELP_NAMES, command
from adakv_model.runtime.inputs import check_threads, read_prompt
from adakv_model.runtime.manifest import read_manifest
from adakv_model.terminal import make_console, working
from device_tests.coreml.evaluator.precision import Precision

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console()


@app.command(context_settings=HELP_NAMES)
@command
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by adakv export --target ios.")],
    prompt: Annotated[str, typer.Option(help="Text; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 32,
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Use the chat template. [default: if there is one]", show_default=False),
    ] = None,
    precision: Annotated[Precision, typer.Option(help="fp16 rounds every result, fp32 none.")] = "fp16",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the evaluator. [default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Answer a prompt with a Core ML package, evaluated on this machine instead of Apple's hardware.

    For example: python -m device_tests.coreml.evaluator.generate --artifact artifacts/mine-ios --prompt "Why?"
    """
    if threads is not None:
        check_threads(threads)
    read_manifest(artifact)
    text = read_prompt(prompt)
    with working("loading torch"):
        import torch

        from adakv_model.runtime.artifact import Artifact
        from adakv_model.runtime.generate import encode_prompt
        from device_tests.coreml.evaluator.answer import answer, summary

        opened = Artifact(artifact)
        ids = encode_prompt(opened, text, system, chat)
    if threads is not None:
        torch.set_num_threads(threads)
    new, statistics = answer(opened, ids, max_new_tokens, precision, console)
    text = opened.codec.decode(new, skip_special_tokens=True)
    if as_json:
        print(json.dumps({"text": text, "token_ids": new, **statistics.to_json()}))
    else:
        print(text)
        console.print(summary(statistics), style="dim", soft_wrap=True)


if __name__ == "__main__":
    app()
