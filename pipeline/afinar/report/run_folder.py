"""Run folders: `<target>/runs/<run>/` keeps configuration, summary and page of a job."""

from __future__ import annotations

import json
from typing import Any

from afinar.config.base import JobConfig, as_dict
from afinar.report.index import write_index
from afinar.storage.open import open_store


def report_uri(target: str, run: str) -> str:
    """Return the URI of the page of a run."""
    return open_store(target).uri(_file(run, "report.html"))


def record_run(
    target: str, run: str, config: JobConfig, summary: dict[str, Any], page: str | None = None
) -> None:
    """Write the page of a run, if it has one, its configuration, its summary, and the index."""
    store = open_store(target)
    if page is not None:
        store.put_if_absent(_file(run, "report.html"), page.encode())
    store.put_if_absent(_file(run, "config.json"), json.dumps(as_dict(config), indent=1).encode())
    store.put_if_absent(_file(run, "summary.json"), json.dumps(summary, indent=1).encode())
    write_index(target)


def _file(run: str, name: str) -> str:
    return f"runs/{run}/{name}"
