"""Fixtures of ingest's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bad_network import impatient, source
from tests.conftest import jpeg
from tests.faults import fault_proxy, fault_server

__all__ = ["fault_proxy", "fault_server", "impatient", "source"]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Eight pictures in one folder, `0.jpg` to `7.jpg`."""
    folder = tmp_path / "flat"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
    return folder
