"""Fixtures of the tests of predictions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.predictions.folders import uncertain_archive


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """60 pictures that the model is uncertain about, and a broken one."""
    return uncertain_archive(tmp_path / "scans, and more")
