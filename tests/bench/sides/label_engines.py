"""Forward passes of one model on one core, in torch and in OpenVINO, on the same pictures."""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.inference.openvino import OpenVinoNetwork
from afinar.inference.predictor import Predictor, load_predictor
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import decode

BATCH = 16
_MANY = 10**9  # pictures: OpenVINO is worth its start


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return milliseconds per picture by engine and round, and what the engines answered.

    The engines take turns. A forward pass begins with uint8 pictures and ends with probabilities.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    store, version = find_model(request["model"])
    paths = islice(sorted(Path(request["source"]).rglob("*.jpg")), request["pictures"])
    images = np.stack([decode(path.read_bytes(), version.stored_view).image for path in paths])
    predictors = {
        "float32": load_predictor(store, version, precision="float32"),
        "torch": load_predictor(store, version, precision="auto"),
    }
    started = time.perf_counter()
    predictors["openvino"] = load_predictor(store, version, precision="auto", pictures=_MANY)
    start_s = time.perf_counter() - started

    answers = {name: _labelled(predictor, images)[0] for name, predictor in predictors.items()}
    times: dict[str, list[float]] = {name: [] for name in predictors}
    for _ in range(request["rounds"]):
        for name, predictor in predictors.items():
            times[name].append(_labelled(predictor, images)[1])
    return {
        "times_ms": times,
        "precisions": {name: _precision(predictor) for name, predictor in predictors.items()},
        "same": {name: _same(scores, answers["float32"]) for name, scores in answers.items()},
        "apart": {
            name: float(np.abs(scores - answers["float32"]).max())
            for name, scores in answers.items()
        },
        "start_s": start_s,
    }


def _labelled(predictor: Predictor, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], float]:
    """Return the scores of all pictures, and the milliseconds per picture."""
    started = time.perf_counter()
    scores = [predictor(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
    seconds = time.perf_counter() - started
    return np.concatenate(scores), 1000 * seconds / len(images)


def _precision(predictor: Predictor) -> str:
    network = predictor.network
    if isinstance(network, OpenVinoNetwork):
        return f"OpenVINO {network.precision}"
    dtype = next(network.parameters()).dtype
    return f"torch {str(dtype).removeprefix('torch.')}"


def _same(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float((scores.argmax(axis=1) == expected.argmax(axis=1)).mean())


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
