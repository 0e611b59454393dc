"""Ray's output of a training as a file of its run folder."""

from __future__ import annotations

from pathlib import Path

from afinar.execution import ray_log
from afinar.storage.open import open_store


def test_lines_are_written_once(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ray_log.save(open_store(str(tmp_path / "earlier")), "run")  # lines of other tests
    ray_log.keep("10.0.0.1 7", ["core_worker.cc:2465: Actor", "GLHF!"])
    ray_log.save(store, "first")
    (path,) = (tmp_path / "runs" / "first").iterdir()
    assert path.name.startswith("ray-")
    assert path.read_text() == "(10.0.0.1 7) core_worker.cc:2465: Actor\n(10.0.0.1 7) GLHF!\n"

    ray_log.save(store, "second")
    assert not (tmp_path / "runs" / "second").exists(), "there is nothing new"
