"""Export of a published model to one file that runs without afinar: ONNX, or torch.export (.pt2).

The file takes `images`, uint8 [n, size, size, 3]: RGB values 0 to 255 of the square that the
model's `stored_view` describes. It gives `probabilities`, float32 [n, classes], as a Predictor
does: the resize to the network's size, the normalisation and the temperature are inside. `n` is
free. Outside are decoding and fitting a file to the square. The file's metadata (`afinar`, JSON)
names the classes and both views.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from afinar.config.models import ExportFormat
from afinar.errors import ModelError, RequestError
from afinar.models.networks.cuts import TRACING
from afinar.models.networks.network import Network, apply_input_view
from afinar.models.registry.bundle import load_network
from afinar.models.registry.golden import Golden, assert_matches_record, get_golden, softmax
from afinar.models.registry.versions import ModelVersion
from afinar.storage.store import Store

if TYPE_CHECKING:
    from torch.export import ExportedProgram

TOLERANCE: Final = 1e-3
"""Largest difference of a probability of the golden samples in the file that was written."""

METADATA: Final = "afinar"
"""Key of the metadata in an ONNX file, and name of the extra file in a torch.export file."""

_ONNX_PACKAGES: Final = ("onnx", "onnxscript", "onnxruntime")
_OPSET: Final = 18  # the first whose Resize is antialiased
_MAX_BATCH: Final = 2**20


class _Pipeline(nn.Module):
    """From stored views, uint8 [n, size, size, 3], to probabilities, float32 [n, classes]."""

    def __init__(self, network: Network, version: ModelVersion) -> None:
        super().__init__()
        self.network = network
        self._view, self._temperature = version.input_view, version.temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(apply_input_view(images, self._view))
        return (logits / self._temperature).softmax(dim=1)


@dataclass(frozen=True)
class ExportedModel:
    """A file that was written: its size, and the largest difference of a golden probability."""

    path: str
    bytes: int
    difference: float


def export_model(
    store: Store, version: ModelVersion, file_format: ExportFormat, path: str | Path
) -> ExportedModel:
    """Write a version to a local file that does not exist yet.

    The golden samples are predicted with the written file before it gets its name. Raises
    RequestError if the path or an installed package is missing, ModelError, without a file, if
    the network cannot be exported or predicts other probabilities.
    """
    target = Path(path)
    _require_exportable(file_format, target, str(path))
    golden = get_golden(store, version.golden)
    assert_matches_record(golden, version)
    # Channels-last weights would be written with their strides, which torch.export warns about.
    network = load_network(store, version).to(memory_format=torch.contiguous_format)
    pipeline = _Pipeline(network, version).eval()

    scratch = target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}")
    try:
        try:
            _write(pipeline, version, file_format, scratch)
            predicted = _predict(file_format, scratch, golden.images)
        except Exception as error:  # whatever an exporter raises: the model stays unexported
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ModelError(
                f"model {version.id} cannot be exported as {file_format} ({reason})"
            ) from error
        difference = _difference(golden, version, predicted)
        if not difference <= TOLERANCE:  # also true for NaN
            raise ModelError(
                f"the {file_format} file of model {version.id} predicts the golden samples "
                f"differently (by {difference:.2g}, limit {TOLERANCE:g}): it was not kept"
            )
        size = scratch.stat().st_size
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)
    return ExportedModel(str(target), size, difference)


def _require_exportable(file_format: ExportFormat, target: Path, given: str) -> None:
    if "://" in given:
        raise RequestError(f"{given}: models are exported to a local file; copy it from there")
    if not target.parent.is_dir():
        raise RequestError(f"there is no folder {target.parent}: make it, or name another file")
    if target.exists():
        raise RequestError(f"{target} exists: delete it, or name another file")
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if file_format == "onnx" and missing:
        raise RequestError(f"exporting ONNX needs {', '.join(missing)}: pip install 'afinar[onnx]'")


def _write(
    pipeline: _Pipeline, version: ModelVersion, file_format: ExportFormat, path: Path
) -> None:
    metadata = json.dumps(_metadata(version))
    program = _traced(pipeline, version.stored_view.size)
    if file_format == "torch.export":
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: metadata})
        return

    # The exporter logs each of its passes, as a warning where it skips one.
    quiet = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in quiet]
    for logger in quiet:
        logger.setLevel(logging.ERROR)
    try:
        exported = torch.onnx.export(
            program,
            opset_version=_OPSET,
            input_names=["images"],
            output_names=["probabilities"],
            verbose=False,
        )
    finally:
        for logger, level in zip(quiet, levels, strict=True):
            logger.setLevel(level)
    assert exported is not None
    exported.model.metadata_props[METADATA] = metadata
    exported.save(os.fspath(path), external_data=False)


def _traced(pipeline: _Pipeline, size: int) -> ExportedProgram:
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with TRACING, torch.no_grad():
        return torch.export.export(
            pipeline, (images,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=_MAX_BATCH)},)
        )


def _metadata(version: ModelVersion) -> dict[str, Any]:
    return {
        "model": version.id,
        "classes": version.classes,
        "temperature": version.temperature,
        "stored_view": version.stored_view.as_dict(),
        "input_view": version.input_view.as_dict(),
        "input": "images: uint8 [n, size, size, 3], RGB, 0 to 255, of the stored view",
        "output": "probabilities: float32 [n, classes]",
    }


def _predict(
    file_format: ExportFormat, path: Path, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """Return the probabilities of the file at `path` for stored views."""
    if file_format == "torch.export":
        with path.open("rb") as file, torch.no_grad():
            module = torch.export.load(file).module()
            probabilities: NDArray[np.float32] = module(torch.from_numpy(images)).numpy()
        return probabilities

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    (probabilities,) = session.run(None, {session.get_inputs()[0].name: images})
    return probabilities


def _difference(golden: Golden, version: ModelVersion, predicted: NDArray[np.float32]) -> float:
    expected = softmax(golden.logits / version.temperature)
    if predicted.shape != expected.shape:
        return float("inf")
    return float(np.abs(predicted - expected).max(initial=0.0))
