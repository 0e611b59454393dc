"""`plan`, `status` and `forget` as commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.main import main
from afinar.config.ingest import IngestConfig
from afinar.dataset.manifest import get_manifests
from afinar.ingestion.driver import run_ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained


def run_json(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    """Return exit code and the one JSON object on stdout."""
    code = main([*argv, "--json"])
    return code, json.loads(capfd.readouterr().out)


@pytest.fixture
def dataset(archive: Path, tmp_path: Path) -> str:
    path = str(tmp_path / "dataset")
    (archive / "moss" / "empty.jpg").write_bytes(b"")
    run_ingest(IngestConfig(source=str(archive), dataset=path, size=32), InlineExecutor())
    return path


def test_plan_estimates_an_ingest_and_writes_nothing(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, planned = run_json(
        capfd, "plan", "ingest", str(archive), str(tmp_path / "d"), "--size", "32", "--workers", "4"
    )
    assert (code, planned["to_read"], planned["workers"], planned["requests"]["GET"]) == (
        0,
        24,
        4,
        24,
    )
    assert main(["plan", "ingest", str(archive), str(tmp_path / "d")]) == 0
    text = capfd.readouterr().out
    assert "24 pictures" in text
    assert "with 1 worker as fast as this one" in text, "there is one unit"
    assert not (tmp_path / "d").exists()
    assert main(["plan", "bake"]) == 2
    assert "afinar plan ingest" in capfd.readouterr().err


def test_status_names_pictures_whose_content_is_repeated(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted((archive / "moss").iterdir())[:2]
    shutil.copy(first, archive / "moss" / "again.jpg")
    shutil.copy(second, archive / "rust" / "again.jpg")
    path = str(tmp_path / "dataset")
    run_ingest(IngestConfig(source=str(archive), dataset=path, size=32), InlineExecutor())
    assert main(["status", path]) == 0
    text = capfd.readouterr().out
    assert "exact copies of another picture: 2" in text
    assert "because the same content has two labels: 2" in text
    assert "in a safer one" not in text, "there is none"


def test_status_shows_verifies_and_deletes(dataset: str, capfd: pytest.CaptureFixture[str]) -> None:
    code, status = run_json(capfd, "status", dataset, "--verify")
    assert (code, status["verified"], status["damaged"]) == (0, 4, [])
    assert status["rejects_by_reason"] == {"empty": 1}
    assert [version["samples"] for version in status["versions"]] == [24]
    assert main(["status", dataset]) == 0
    text = capfd.readouterr().out
    assert "32 x 32 px, pad, pixels" in text
    assert "moss 12, rust 12" in text

    store = open_store(dataset)
    store.put_if_absent("shards/00000001-dead-beef.arrow", b"garbage")
    code, status = run_json(capfd, "status", dataset, "--gc")
    assert code == 0
    assert "shards/00000001-dead-beef.arrow" in status["removed"]

    (shard,) = (info.name for info in store.walk("shards"))
    store.delete(shard)
    code, status = run_json(capfd, "status", dataset, "--verify")
    assert (code, [damage["path"] for damage in status["damaged"]]) == (1, [shard])
    assert main(["status", dataset, "--verify"]) == 1
    assert shard in capfd.readouterr().out


def test_status_of_models_shows_verifies_and_deletes(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    models = str(shutil.copytree(trained.models, tmp_path / "models"))
    shutil.rmtree(tmp_path / "models" / "unfinished")
    store = open_store(models)
    run = "20260101T000000Z-abcdef"
    marker = {"run": run, "dataset": trained.dataset, "dataset_version": 1}
    abandoned = f"runs/{run}/config.json"
    store.put_if_absent("unfinished/0123456789abcdef.json", json.dumps(marker).encode())
    for name in (abandoned, "runs/dead/config.json", "weights/unused.safetensors"):
        store.put_if_absent(name, b"{}")

    code, status = run_json(capfd, "status", models, "--verify")
    assert (code, status["verified"], status["champion"]) == (0, 2, 1)
    assert [unfinished["run"] for unfinished in status["unfinished"]] == [run]
    assert main(["status", models]) == 0
    text = capfd.readouterr().out
    assert "(champion)" in text
    assert run in text

    code, status = run_json(capfd, "status", models, "--gc")
    assert (code, status["removed"]) == (0, ["runs/dead/config.json"])
    assert len(status["unfinished"]) == 1, "it may be in progress, or be resumed"
    code, status = run_json(capfd, "status", models, "--gc", "--drop-plans")
    assert status["runs_dropped"] == [run]
    assert abandoned in status["removed"]
    assert "weights/unused.safetensors" in status["removed"]
    assert status["unfinished"] == []
    code, status = run_json(capfd, "status", models, "--verify")
    assert (code, status["damaged"]) == (0, [])
    assert {info.name.split("/")[1] for info in store.walk("runs")} == {"run"}
    assert main(["status", models, "--gc", "--keep", "1"]) == 2


def test_wrong_requests_exit_2_with_their_message(
    dataset: str, archive: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for argv, message in (
        (["status", str(archive)], "holds no dataset"),
        (["status", dataset, "--keep", "3"], "give --gc with it"),
        (["forget", dataset], "name at least one picture"),
        (["forget", dataset, "moss/nothing.jpg"], "nothing was erased"),
        (["forget", str(archive), "moss/000.jpg"], "holds no dataset"),
    ):
        assert main(argv) == 2
        assert message in capfd.readouterr().err


def test_forget_erases_pictures_and_notes_what_it_cannot_reach(
    dataset: str, local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    code, summary = run_json(capfd, "forget", dataset, "moss/003.jpg", "rust/004.jpg")
    assert (code, summary["version"], summary["pictures"], summary["versions_withdrawn"]) == (
        0,
        2,
        2,
        [1],
    )
    places = " ".join(summary["notes"])
    for place in (
        "source's own files", "thumbnails", "features in parts/ and single/", "golden/",
        "test.parquet", "afinar-cache", "uris of erased pictures", "content hashes", "training",
    ):  # fmt: skip
        assert place in places
    assert len(get_manifests(open_store(dataset))) == 1
