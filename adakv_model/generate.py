"""Command line of `adakv generate` and `python -m adakv_model.generate`: text from an exported artifact on the host.

Streams the answer, then prints speed, the tiers its tokens went to, and what the cache costs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from adakv_model.command_line import HELP_NAMES, command, if_interrupted
from adakv_model.runtime.inputs import check_sampling, check_threads, read_prompt
from adakv_model.runtime.manifest import read_manifest
from adakv_model.terminal import make_console, working

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = make_console()


@app.command(context_settings=HELP_NAMES)
@command
def main(
    artifact: Annotated[Path, typer.Option(help="Folder written by adakv export.")],
    prompt: Annotated[str, typer.Option(help="Text; - reads it from standard input.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampler, with a temperature above 0.")] = 0,
    system: Annotated[str | None, typer.Option(help="System message of the chat template.")] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat", help="Use the chat template. \\[default: if there is one]", show_default=False
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the runtime. \\[default: all cores]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Generate text from an exported artifact, on this machine.

    For example: adakv generate --artifact artifacts/mine --prompt "Why is the sky blue?"
    """
    check_sampling(temperature, seed)  # complain before torch is loaded
    if threads is not None:
        check_threads(threads)
    read_manifest(artifact)
    text = read_prompt(prompt)
    with working("loading the runtime"):
        import torch

        from adakv_model.runtime.artifact import Artifact, set_threads
        from adakv_model.runtime.generate import encode_prompt, generate, summary

        opened = Artifact(artifact)
        ids = encode_prompt(opened, text, system, chat)
    torch.set_num_threads(1)  # torch's own threads spin between operations, on the cores of the runtime's
    if threads is not None:
        set_threads(threads)
    stream, shown = opened.codec.stream(), 0

    def show(piece: str) -> None:
        if not as_json:
            print(piece, end="", flush=True)

    def emit(token: int) -> None:
        nonlocal shown
        shown += 1
        show(stream.push(token))

    def cut_off() -> str:
        if shown:
            show(stream.flush() + "\n")
        return f"the answer ends at token {shown}" if shown else "no answer yet"

    with if_interrupted(cut_off):
        new, statistics = generate(opened, ids, max_new_tokens, temperature=temperature, seed=seed, emit=emit)
    show(stream.flush() + "\n")
    if as_json:
        answer = opened.codec.decode(new, skip_special_tokens=True)
        print(json.dumps({"text": answer, "token_ids": new, **statistics.to_json()}))
    else:
        console.print(summary(statistics), style="dim", soft_wrap=True)


if __name__ == "__main__":
    app()
