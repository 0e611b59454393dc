"""`plan`, `status` and `forget` as commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from afinar.cli.main import main
from afinar.config.ingest import IngestConfig
from afinar.dataset.gc import manifests
from afinar.ingest.driver import Ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor


def answer(capfd: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and the one JSON object on stdout."""
    code = main([*words, "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.fixture
def dataset(archive: Path, tmp_path: Path) -> str:
    path = str(tmp_path / "dataset")
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    Ingest(IngestConfig(source=str(archive), dataset=path, size=32), InlineExecutor()).run()
    return path


def test_a_plan_says_what_an_ingest_would_take(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, planned = answer(
        capfd, "plan", "ingest", str(archive), str(tmp_path / "d"), "--size", "32", "--workers", "4"
    )
    assert (code, planned["to_read"], planned["workers"], planned["requests"]["GET"]) == (
        0,
        24,
        4,
        24,
    )
    assert main(["plan", "ingest", str(archive), str(tmp_path / "d")]) == 0
    said = capfd.readouterr().out
    assert "24 pictures" in said
    assert "with 2 workers" in said or "workers as fast as this one" in said
    assert not (tmp_path / "d").exists()
    assert main(["plan", "bake"]) == 2
    assert "afinar plan ingest" in capfd.readouterr().err


def test_status_shows_verifies_and_cleans_up(
    dataset: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, status = answer(capfd, "status", dataset, "--verify")
    assert (code, status["verified"], status["damaged"]) == (0, 4, [])
    assert status["rejects_by_reason"] == {"empty": 1}
    assert [version["samples"] for version in status["versions"]] == [24]
    assert main(["status", dataset]) == 0
    said = capfd.readouterr().out
    assert "32 x 32 px, crop, pixels" in said
    assert "moss 12, rust 12" in said

    store = open_store(dataset)
    store.put_if_absent("shards/00000001-dead-beef.arrow", b"garbage")
    code, status = answer(capfd, "status", dataset, "--gc")
    assert code == 0
    assert "shards/00000001-dead-beef.arrow" in status["removed"]

    (shard,) = (info.name for info in store.walk("shards"))
    store.delete(shard)
    code, status = answer(capfd, "status", dataset, "--verify")
    assert (code, [found["path"] for found in status["damaged"]]) == (1, [shard])
    assert main(["status", dataset, "--verify"]) == 1
    assert shard in capfd.readouterr().out


def test_requests_that_are_wrong_say_what_to_change(
    dataset: str, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words, sentence in (
        (["status", str(archive)], "holds no dataset"),
        (["status", dataset, "--keep", "3"], "give --gc with it"),
        (["forget", dataset], "name at least one picture"),
        (["forget", dataset, "moss/nothing.jpg"], "nothing was erased"),
        (["forget", str(archive), "moss/000.jpg"], "holds no dataset"),
    ):
        assert main(words) == 2
        assert sentence in capfd.readouterr().err


def test_forget_erases_and_says_what_it_cannot_reach(
    dataset: str, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    code, summary = answer(capfd, "forget", dataset, "moss/003.jpg", "rust/004.jpg")
    assert (code, summary["version"], summary["pictures"], summary["versions_withdrawn"]) == (
        0,
        2,
        2,
        [1],
    )
    assert "models trained before" in summary["notes"][0]
    assert len(manifests(open_store(dataset))) == 1
