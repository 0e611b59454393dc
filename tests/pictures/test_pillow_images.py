"""Pillow's own test pictures: each is a sample or a reject, in bounded time and memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from afinar.pictures.rejects import Reason
from tests.pictures.pillow_images import FILES, pillow_images

LIMIT_S = 5.0
LIMIT_BYTES = 800_000_000  # of the process: 500 MB for a picture

# A separate process: a crash of a decoder does not end the tests, and memory is measured alone.
# Time is CPU time, which other load on the machine does not lengthen.
PROGRAM = """
import json, re, sys, time
from pathlib import Path
from afinar.pictures.rejects import PictureError
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.decode import decode

view = StoredView(size=64, fit="crop")
for path in sorted(path for path in Path(sys.argv[1]).rglob("*") if path.is_file()):
    data = path.read_bytes()
    started = time.process_time()
    try:
        image = decode(data, view).image
        is_stored_view = image.shape == (64, 64, 3) and image.dtype == "uint8"
        outcome = "sample" if is_stored_view else "not the stored view"
    except PictureError as error:
        outcome = str(error.reason)
    except BaseException as error:
        outcome = repr(error)
    seconds = time.process_time() - started
    status = Path("/proc/self/status").read_text()
    peak_bytes = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
    row = {"name": path.name, "outcome": outcome, "seconds": seconds, "peak_bytes": peak_bytes}
    print(json.dumps(row), flush=True)
"""


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Return one row per file: name, outcome, seconds, peak_bytes (of the process so far)."""
    command = [sys.executable, "-c", PROGRAM, str(pillow_images())]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (
        f"ended with {done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
    )
    return [json.loads(line) for line in lines]


def test_every_picture_is_sample_or_reject(rows: list[dict[str, Any]]) -> None:
    counts = Counter(row["outcome"] for row in rows)
    print(dict(counts.most_common()))
    assert set(counts) <= {"sample", *Reason}
    assert counts.total() == FILES
    # 810 with Pillow 13.0.0. The rest: 182 in formats that are not in FORMATS, and broken files.
    assert counts["sample"] >= 810
    assert counts[Reason.TOO_MANY_PIXELS] >= 5, "the decompression bombs"
    assert counts[Reason.TRUNCATED] >= 9
    assert counts[Reason.TOO_MUCH_MEMORY] == 0


def test_no_picture_exceeds_time_or_memory_limit(rows: list[dict[str, Any]]) -> None:
    slowest = max(rows, key=lambda row: row["seconds"])
    assert slowest["seconds"] <= LIMIT_S, slowest
    assert max(row["peak_bytes"] for row in rows) <= LIMIT_BYTES
