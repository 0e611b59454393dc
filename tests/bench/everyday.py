"""Times that a user waits for: the demo, and the refusal of a wrong request."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.bench.footprint import measure

AFINAR = str(Path(sys.executable).parent / "afinar")
GIB = 2**30


def demo() -> bool:
    """Require that the demo takes at most 3 minutes and 8 GB on two cores."""
    folder = Path(tempfile.mkdtemp(prefix="afinar-bench-"))
    try:
        taken = measure([AFINAR, "demo", str(folder / "demo")])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"demo: {taken.seconds:.0f} s (limit 180), peak {taken.peak_bytes / GIB:.2f} GiB (limit 8)"
    )
    return taken.exit_code == 0 and taken.seconds <= 180 and taken.peak_bytes <= 8e9


REQUESTS = {
    "ingest /nowhere out": 1.5,
    "ingest /etc out": 1.5,
    "ingest /etc /proc/version/out": 1.5,
    "train /nowhere out": 1.5,
    "train /nowhere out --backbone resnet81": 1.5,
    "train /nowhere out --regime thawed": 1.5,
    "label /etc out --model /nowhere@champion": 1.5,
    "submit -- ingest relative out": 1.5,
}


def requests() -> bool:
    """Require that wrong requests end with exit code 2 within 1.5 s, the best of four runs."""
    all_met = True
    for request, limit_s in REQUESTS.items():
        seconds = min(_refusal_s(request) for _ in range(4))
        print(f"{seconds:5.2f} s (limit {limit_s})  afinar {request}")
        all_met &= seconds <= limit_s
    return all_met


def _refusal_s(request: str) -> float:
    started = time.monotonic()
    done = subprocess.run([AFINAR, *request.split()], capture_output=True, cwd="/tmp", check=False)
    assert done.returncode == 2, done.stderr
    return time.monotonic() - started
