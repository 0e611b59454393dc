"""What a job leaves in its run folder, and how a summary reads."""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from typing import Any

from afinar.config.base import JobConfig, as_dict
from afinar.storage.open import open_store


def new_run() -> str:
    """Name of a run: when it started, in UTC, and a few random digits."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid.uuid4().hex[:6]}"


def record_run(target: str, run: str, config: JobConfig, summary: dict[str, Any]) -> None:
    """Keep the configuration and the summary of a job that did work under `<target>/runs/<run>/`."""
    store = open_store(target)
    store.put_if_absent(f"runs/{run}/config.json", json.dumps(as_dict(config), indent=1).encode())
    store.put_if_absent(f"runs/{run}/summary.json", json.dumps(summary, indent=1).encode())


def as_json(summary: Any) -> dict[str, Any]:
    """A summary dataclass as a JSON-able dict."""
    return dataclasses.asdict(summary)


def format_counts(counts: dict[str, int]) -> str:
    """ "a 3, b 1" """
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def size(count: float) -> str:
    """Bytes as people say them: "3.2 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit in {"B", "kB"} else f"{count:.1f} {unit}"


def table(rows: list[tuple[str, str]]) -> str:
    """Two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
