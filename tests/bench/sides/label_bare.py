"""Bound of labelling: decoding alone and the forward pass alone, in one process per core."""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afinar.inference.predictor import load_predictor
from afinar.models.networks.network import apply_input_view
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import decode
from afinar.units.own_process import claim_process, keep_freed_memory

WARM = 20
_MANY = 10**9  # pictures: as labelling, so OpenVINO where it is installed


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Return the seconds per picture of every process: `decode`, and `forward` by candidate.

    `request["candidates"]` are pairs of a network's name and a batch size. Each of them handles
    `request["pictures"]` pictures.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(request["cores"])
    answers: Any = context.SimpleQueue()
    processes = [
        context.Process(target=_costs, args=(request, barrier, answers))
        for _ in range(request["cores"])
    ]
    for process in processes:
        process.start()
    costs = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "decode": [cost["decode"] for cost in costs],
        "forward": [cost["forward"] for cost in costs],
    }


def _costs(request: dict[str, Any], barrier: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    claim_process()
    keep_freed_memory()  # as a labelling worker does: the bound is that of the same malloc
    store, version = find_model(request["model"])
    view = version.stored_view
    paths = cycle(sorted(Path(request["source"]).rglob("*.jpg")))
    files = [path.read_bytes() for path in islice(paths, request["pictures"])]
    for data in files[:WARM]:
        decode(data, view)
    decoding = _timed(barrier, lambda: [decode(data, view) for data in files]) / len(files)
    images = np.stack([decode(data, view).image for data in files])
    networks = {
        "published": load_network(store, version),
        "labelling's": load_predictor(store, version, precision="auto", pictures=_MANY).network,
    }
    inputs = apply_input_view(torch.from_numpy(images), version.input_view)
    forward = [
        [name, batch, _forward_s(networks[name], inputs, batch, barrier)]
        for name, batch in request["candidates"]
    ]
    answers.put({"decode": decoding, "forward": forward})


def _forward_s(network: nn.Module, inputs: Tensor, batch: int, barrier: Any) -> float:
    """Return the seconds per picture of the forward pass; `inputs` are normalized."""
    dtype = next(network.parameters()).dtype
    batches = [
        inputs[start : start + batch].to(dtype).contiguous(memory_format=torch.channels_last)
        for start in range(0, len(inputs) - batch + 1, batch)
    ]
    with torch.inference_mode():
        network(batches[0])
        seconds = _timed(barrier, lambda: [network(images) for images in batches])
        return seconds / (len(batches) * batch)


def _timed(barrier: Any, work: Callable[[], object]) -> float:
    """Return the seconds of `work` while every other process does the same."""
    barrier.wait()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
