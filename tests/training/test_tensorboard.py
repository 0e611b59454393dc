"""TensorBoard event files, parsed without tensorboardX's writer."""

from __future__ import annotations

import struct
import sys
from typing import Any

import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event

from afinar.training.tensorboard import event_file

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
    """Parse the records of a TFRecord file: length, its checksum, data, its checksum."""
    parsed = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        record, data = data[12 : 12 + length], data[8:]
        assert masked_checksum(struct.pack("<Q", length)) == data[:4]
        assert masked_checksum(record) == data[4 + length : 8 + length]
        parsed.append(record)
        data = data[8 + length :]
    return parsed


def masked_checksum(data: bytes) -> bytes:
    checksum = crc32c(data)
    return struct.pack("<I", (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def test_event_file_holds_the_numbers_of_an_epoch_at_its_step() -> None:
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


def test_event_file_without_tensorboardx_logs_one_note_per_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert [event_file(ROW, "runs/without") for _ in range(2)] == [None, None]
    log = capsys.readouterr().err
    assert log.count("tensorboardX is not installed") == 1
    assert "runs/without" in log
