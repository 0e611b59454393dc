"""TensorBoard's files, read back by its own framing."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
from afinar.training.tensorboard import event_file
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

ROW: dict[str, Any] = {
    "epoch": 3,
    "train": {"loss": 0.5},
    "val": {
        "loss": 0.625,
        "top1": 0.75,
        "top5": None,
        "recall": {"moss": 1.0, "rust/red": 0.5},
        "samples": 12,
    },
    "ledger": {"limit": "The processor is the limit.", "waiting_s": 2.5},
    "seconds": 9,
    "stopped": True,
}


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, its checksum, data, its checksum."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record, data = data[12 : 12 + length], data[8:]
        assert masked(struct.pack("<Q", length)) == data[:4]
        assert masked(record) == data[4 + length : 8 + length]
        found.append(record)
        data = data[8 + length :]
    return found


def masked(data: bytes) -> bytes:
    checksum = crc32c(data)
    return struct.pack("<I", (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def test_an_epoch_is_its_scalars_at_its_step() -> None:
    data = event_file(ROW, "runs/one")
    assert data is not None
    first, *events = [Event.FromString(record) for record in records(data)]
    assert first.file_version == "brain.Event:2"
    assert {event.step for event in events} == {3}
    values = {value.tag: value.simple_value for event in events for value in event.summary.value}
    assert values == {
        "train/loss": 0.5,
        "val/loss": 0.625,
        "val/top1": 0.75,
        "val/recall/moss": 1.0,
        "val/recall/rust/red": 0.5,
        "val/samples": 12.0,
        "ledger/waiting_s": 2.5,
        "seconds": 9.0,
    }


def test_where_tensorboardx_is_missing_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert [event_file(ROW, "runs/without") for _ in range(2)] == [None, None]
    said = capsys.readouterr().err
    assert said.count("tensorboardX is not installed") == 1
    assert "runs/without" in said
