"""Files that people give as weights: each is used, or refused by what it is and what to do."""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from afinar.errors import RequestError
from afinar.models.networks.weight_files import StateDict, parse_weights, select_tensors

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
STATE: StateDict = NETWORK.state_dict()


def saved(value: Any, **options: Any) -> bytes:
    sink = io.BytesIO()
    torch.save(value, sink, **options)
    return sink.getvalue()


def prefixed(prefix: str) -> StateDict:
    return {prefix + name: value for name, value in STATE.items()}


def zipped(**files: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return sink.getvalue()


USABLE: dict[str, bytes] = {
    "plain": saved(STATE),
    "format of old versions": saved(STATE, _use_new_zipfile_serialization=False),
    "safetensors": safetensors.torch.save(STATE),
    "DataParallel": saved(prefixed("module.")),
    "Lightning": saved({"state_dict": prefixed("model."), "epoch": 3, "optimizer": [1, 2]}),
    "compiled": saved({"model": prefixed("_orig_mod.module.")}),
    "compiled within": saved({name.replace("3.", "3._orig_mod."): STATE[name] for name in STATE}),
    "checkpoint": saved({"model_state_dict": STATE, "lr": 0.1}),
    "deep prefix": saved({**prefixed("net.encoder."), "net.head.weight": torch.zeros(2)}),
    "without counters": saved(
        {name: value for name, value in STATE.items() if "num_batches" not in name}
    ),
}


@pytest.mark.parametrize("name", USABLE)
def test_usual_form_of_weights_is_used(name: str) -> None:
    selected = select_tensors(parse_weights(USABLE[name], "w"), NETWORK.state_dict(), "w")
    for key, value in STATE.items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(selected[key], value)


def test_prefix_and_checkpoint_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "afinar"):
        state = parse_weights(USABLE["Lightning"], "epoch=3.ckpt")
        select_tensors(state, NETWORK.state_dict(), "epoch=3.ckpt")
    assert "its 'state_dict' is used" in caplog.text
    assert "begin with 'model.', which is left out" in caplog.text


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty: delete it"),
    "zeros": (bytes(1000), "is empty: delete it"),
    "half": (saved(STATE)[:700], "is cut off or damaged"),
    "half, old format": (USABLE["format of old versions"][:700], "is cut off or damaged"),
    "half, safetensors": (USABLE["safetensors"][:-8], "is cut off or damaged"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "run `git lfs pull`"),
    "page": (b"\n<!DOCTYPE html><title>Sign in</title>", "is a web page"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(64), "is an HDF5 file"),
    "gzip": (gzip.compress(saved(STATE)), "compressed with gzip"),
    "zip": (zipped(readme=b"r", weights=saved(STATE)), "is a zip archive of 2 files"),
    "TorchScript": (zipped(**{"m/constants.pkl": b"", "m/data.pkl": b""}), "TorchScript"),
    "whole network": (saved(NETWORK), "holds objects of Python (torch.nn.modules.container"),
    "options": (saved({"state_dict": STATE, "args": argparse.Namespace()}), "argparse.Namespace"),
    "list": (saved([1, 2]), "holds no plain state dict but a list"),
    "nothing": (saved({}), "holds no plain state dict but nothing"),
    "numbers": (saved({"epoch": 3}), "'epoch' is of type int"),
    "sparse": (saved({"a": torch.zeros(2).to_sparse()}), "a is sparse or quantized"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_file_is_refused_by_what_it_is(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(RequestError) as raised:
        parse_weights(data, "/data/w.pth")
    assert "/data/w.pth" in str(raised.value)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def changed(change: Callable[[Tensor], Tensor]) -> StateDict:
    return {**STATE, "0.weight": change(STATE["0.weight"])}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"conv.weight": torch.zeros(1)}, "lacks 0.weight, 0.bias, 1.weight and 5 more"),
        (changed(lambda value: value[:2]), "0.weight is [2, 3, 3, 3] instead of [4, 3, 3, 3]"),
        (changed(lambda value: value.to(torch.int8)), "0.weight is"),
        (changed(lambda value: value * float("nan")), "not finite in 0.weight"),
        (prefixed("student.") | prefixed("teacher."), "several networks, under student., teacher."),
    ],
)
def test_state_dict_that_does_not_fit_is_refused_with_what_differs(
    state: StateDict, message: str
) -> None:
    with torch.device("meta"):
        needed = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)
        ).state_dict()
    with pytest.raises(RequestError) as raised:
        select_tensors(state, needed, "w.pth")
    assert message in str(raised.value)
