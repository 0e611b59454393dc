"""Pillow's own test pictures: 1,060 odd, broken and hostile files of its source distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

RELEASE = "13.0.0"
FILES = 1_060


def pillow_images() -> Path:
    """Return the folder of the pictures, fetched on first use into the temporary folder.

    Skips the test if the source distribution cannot be fetched.
    """
    folder = Path(tempfile.gettempdir()) / f"afinar-pillow-{RELEASE}-{os.getuid()}"
    if not folder.exists():
        with tempfile.TemporaryDirectory() as scratch:
            archive = _download(Path(scratch))
            _unpack(archive, Path(scratch) / "images")
            _publish(Path(scratch) / "images", folder)
    return folder


def _download(folder: Path) -> Path:
    # The environment has uv, which downloads no source distributions, and no pip.
    uv = str(Path(sys.executable).with_name("uv"))
    command = [
        uv, "tool", "run", "--from", "pip", "pip", "download", "--quiet", "--no-deps",
        "--no-binary", ":all:", "--dest", str(folder), f"pillow=={RELEASE}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    found = [*folder.glob("*.tar.gz")]
    if not found:
        pytest.skip(
            f"Pillow's source distribution could not be fetched: {done.stderr.strip()[-300:]}"
        )
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    root = f"pillow-{RELEASE}/Tests/images/"
    with tarfile.open(archive) as package:
        members = [member for member in package if member.isfile() and member.name.startswith(root)]
        for member in members:
            member.name = member.name.removeprefix(root)
        package.extractall(folder, members, filter="data")
    assert len(members) == FILES


def _publish(images: Path, folder: Path) -> None:
    """Rename into place: another test process may do the same at this moment."""
    aside = folder.with_name(f"{folder.name}-{os.getpid()}")
    shutil.move(images, aside)
    try:
        aside.rename(folder)
    except OSError:
        shutil.rmtree(aside)
