"""The eager twins of an artifact: the same model in torch, over the quantized cache or over a float one."""

from __future__ import annotations

from adakv_model.budget import PlannedCache
from adakv_model.checkpoints.load import Checkpoint, load_checkpoint
from adakv_model.features import DEFAULT_FEATURES
from adakv_model.kv_cache import FloatCache
from adakv_model.model import Llama, build_model
from adakv_model.runtime.artifact import Artifact
from adakv_model.runtime.manifest import CALIBRATION
from adakv_model.tables import CalibrationTables
from export.android import build_exportable
from export.weights import quantize_weights


def checkpoint_of(artifact: Artifact) -> Checkpoint:
    """The weights an artifact was made from."""
    model = artifact.manifest["model"]
    if model["random_weights"]:
        return load_checkpoint(model["name"], random_weights=True)
    return load_checkpoint(model["name"], path=model["source"].get("path"))


def quantized_twin(artifact: Artifact, checkpoint: Checkpoint) -> Llama:
    """Reference kernels, the artifact's own plan and thresholds, and its weight quantization in torch."""
    tables = CalibrationTables.load(artifact.folder / CALIBRATION)
    controller = artifact.manifest["controller"]
    features = controller.get("feature_set", DEFAULT_FEATURES)
    planned = PlannedCache(artifact.plan, tuple(controller["thresholds"]), features)
    model = build_exportable(checkpoint, tables, planned)
    quantize_weights(model, artifact.manifest["quantize"], artifact.manifest["embedding"])
    return model


def float_twin(artifact: Artifact, checkpoint: Checkpoint) -> Llama:
    """Float weights over an unquantized cache."""
    return build_model(checkpoint.config, checkpoint.weights, FloatCache(checkpoint.config, artifact.plan.context))
