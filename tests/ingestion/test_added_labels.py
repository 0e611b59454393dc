"""`--add-labels`: labels for pictures of the source and elsewhere, which later ingests keep."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.dataset.gc import collect_garbage, verify_dataset
from afinar.dataset.manifest import get_manifests
from afinar.errors import RequestError
from afinar.ingestion.forget import run_forget
from afinar.storage.open import open_store
from afinar.training.distributed import Group
from afinar.training.driver import run_training
from afinar.training.worker import run_worker
from afinar.units.executor import InlineExecutor
from tests.archives import flat_archive, ingest, label
from tests.conftest import Trained, jpeg, make_archive
from tests.training.runs import config


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return make_archive(tmp_path / "pictures", 20)


@pytest.fixture
def dataset(tmp_path: Path, pictures: Path) -> str:
    ingest(pictures, tmp_path / "dataset")
    return str(tmp_path / "dataset")


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("uri,label\n" + "".join(f"{uri},{name}\n" for uri, name in rows))
    return path


def labels(dataset: str) -> dict[str, str | None]:
    rows = open_dataset(dataset).index.to_pylist()
    return {row["uri"]: row["label"] for row in rows}


def test_pictures_of_the_source_and_elsewhere_are_labelled_and_kept(
    tmp_path: Path, pictures: Path, dataset: str
) -> None:
    scan, other, third = sorted(flat_archive(tmp_path / "scans", 3, 500).iterdir())
    inside = next((pictures / "moss").iterdir())
    form = table(
        tmp_path / "corrections.csv",
        [
            (str(scan), "lichen"),
            (str(other), " moss "),
            (str(third), ""),
            (f"moss/{inside.name}", "lichen"),
            (str(tmp_path / "gone.jpg"), "moss"),
        ],
    )
    summary = ingest(pictures, dataset, add_labels=str(form))
    assert (summary.added, summary.relabelled, summary.units_run) == (2, 1, 1)
    assert any("1 of 5 rows of --add-labels" in note for note in summary.notes)
    assert any("1 of 4 labels of --add-labels are of pictures that are nowhere" in note
               for note in summary.notes)  # fmt: skip
    assert any("3 labels added, 2 of them" in note for note in summary.notes)
    expected = {str(scan): "lichen", str(other): "moss", str(inside): "lichen"}
    assert expected.items() <= labels(dataset).items()

    # A later ingest keeps them, also when the archive is gone, and reads only what is new.
    assert ingest(pictures, dataset).units_run == 0
    other.unlink()
    (pictures / "rust" / "new.jpg").write_bytes(jpeg(99))
    later = ingest(pictures, dataset)
    assert (later.added, later.removed, later.relabelled) == (1, 0, 0)
    assert expected.items() <= labels(dataset).items()
    again = table(tmp_path / "again.csv", [(str(scan), "rust")])
    ingest(pictures, dataset, add_labels=str(again))
    assert (expected | {str(scan): "rust"}).items() <= labels(dataset).items()

    # Garbage collection, verification and erasure know the table.
    run_forget(ForgetConfig(path=dataset, uris=(str(scan),)), InlineExecutor())
    store = open_store(dataset)
    collect_garbage(store, [])
    assert verify_dataset(store, get_manifests(store)).damaged == []
    after = ingest(pictures, dataset)
    assert str(scan) not in labels(dataset)
    assert labels(dataset)[str(inside)] == "lichen"
    assert after.rejects_by_reason == {"forgotten": 1}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("a.jpg", "")], "none of its 1 rows has a label"),
        ([("nowhere/a.jpg", "moss")], "1 of 1 labels of --add-labels are of pictures that are"),
        ([("moss/0.jpg", "moss"), ("moss/0.jpg", "rust")], "more than one label"),
    ],
)
def test_table_without_a_usable_label_is_refused(
    tmp_path: Path, pictures: Path, dataset: str, rows: list[tuple[str, str]], words: str
) -> None:
    first = min(path.name for path in (pictures / "moss").iterdir())
    named = [(uri.replace("moss/0.jpg", f"moss/{first}"), name) for uri, name in rows]
    form = table(tmp_path / "corrections.csv", named)
    with pytest.raises(RequestError, match=words):
        ingest(pictures, dataset, add_labels=str(form))
    assert open_dataset(dataset).manifest.version == 1


def test_review_of_a_labelling_becomes_the_next_training(
    tmp_path: Path, pictures: Path, dataset: str
) -> None:
    """Label, fill in the form, ingest it, train: the champion has learned from the review."""
    models = tmp_path / "models"

    def train(**options: Any) -> Any:
        data = Trained(pictures, dataset, str(models))
        configuration = config(data, models, epochs=1, promote="always", **options)
        return run_training(configuration, lambda task: run_worker(task, Group()))

    train()
    archive = flat_archive(tmp_path / "archive", 8, 900)
    labelled = label(archive, tmp_path / "predictions", str(models), abstain_below=1.0)
    form = Path(labelled.review) / "corrections.csv"
    with form.open(newline="") as source:
        rows = list(csv.DictReader(source))
    assert len(rows) == 8
    assert all(row["label"] == "" and row["predicted"] for row in rows)
    for row in rows[:5]:
        row["label"] = "moss" if int(Path(row["uri"]).stem) % 2 else "rust"
    with form.open("w", newline="") as target:
        writer = csv.DictWriter(target, rows[0])
        writer.writeheader()
        writer.writerows(rows)

    summary = ingest(pictures, dataset, add_labels=str(form))
    assert (summary.version, summary.added) == (2, 5)
    assert any("3 of 8 rows" in note for note in summary.notes)
    outcome = train(seed=1)
    assert outcome.version.lineage["dataset"]["version"] == 2
    assert outcome.champion.champion == outcome.version.version == 2
