"""What labelling says on request: all scores, features, a review queue, and one file of it all."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch

from afinar import open_dataset, open_model, open_predictions
from afinar.cli.label import describe
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.errors import RequestError
from afinar.ingest.driver import run_ingest
from afinar.labelling import driver as job
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.predictions import single_file as single
from afinar.predictions.columns import OptionalColumns, partition_name
from afinar.predictions.manifest import FOLDER
from afinar.predictions.review_queue import ReviewQueue, least_certain
from afinar.predictions.schema import PREDICTIONS
from afinar.report.review import review_page
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import latest
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, jpeg

COUNT = 60
BELOW = 0.9


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """An archive in which pictures go from one class to the other, and one that is broken."""
    folder = tmp_path / "scans, and more"
    folder.mkdir()
    for number in range(COUNT):
        share = 0.42 + 0.13 * number / (COUNT - 1)  # where the model wavers
        tint = tuple(
            round(share * moss + (1 - share) * rust)
            for moss, rust in ((60, 170), (140, 80), (60, 50))
        )
        (folder / f"{number:03d}.jpg").write_bytes(
            jpeg(30_000 + number, tint=(tint[0], tint[1], tint[2]))
        )
    (folder / "empty.jpg").write_bytes(b"")
    return folder


def label(
    source: Path, out: str, trained: Trained, gallery: Any = review_page, **options: Any
) -> LabelSummary:
    config = LabelConfig(source=str(source), predictions=out, model=trained.champion, **options)
    return run_labelling(config, InlineExecutor(), gallery).summary


def entry_of(out: str) -> tuple[str, dict[str, Any]]:
    """Name of the partition that was written last, and what the manifest says of it."""
    found = latest(open_store(out), FOLDER)
    assert found is not None
    return found[1]["current"], found[1]["partitions"][found[1]["current"]]


def names_in(store: Store, folder: str) -> list[str]:
    return sorted(info.name for info in store.walk(folder))


def test_all_scores_come_in_the_order_of_the_classes(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, scores=True, precision="float32")
    partition, entry = entry_of(out)
    assert partition.endswith("-float32-scores")
    assert entry["classes"] == ["moss", "rust"]
    rows = open_predictions(out).table.to_pylist()
    assert len(rows) == COUNT
    for row, alone in zip(
        rows, open_model(trained.champion).predict([row["uri"] for row in rows]), strict=True
    ):
        assert dict(zip(entry["classes"], row["scores"], strict=True)) == pytest.approx(
            alone, abs=1e-5
        )
        assert max(row["scores"]) == row["score"]


def test_features_are_what_the_classifier_saw(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, features=True, top_k=2, precision="float32")
    partition, entry = entry_of(out)
    assert partition.endswith("-top2-float32-features")
    assert "classes" not in entry
    table = open_predictions(out).table
    assert table.schema.field("features").type == pa.list_(pa.float32())
    model = open_model(trained.champion)
    with torch.inference_mode():
        activations = torch.tensor(table.column("features").to_pylist())
        scores = (model.network.classifier(activations) / model.version.temperature).softmax(dim=1)
    assert scores.max(dim=1).values.numpy() == pytest.approx(
        table.column("score").to_numpy(), abs=1e-5
    )
    assert scores.std() > 0.1, "the pictures differ"


def test_scores_and_features_take_one_pass(trained: Trained) -> None:
    model = open_model(trained.champion)
    images = np.stack([np.full((64, 64, 3), shade, dtype=np.uint8) for shade in (10, 200)])
    passes: list[int] = []
    model.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    scores, features = model.outputs(images, features=True)
    assert len(passes) == 1
    assert features is not None
    assert features.shape[0] == 2
    assert features.dtype == scores.dtype == np.float32
    assert scores == pytest.approx(model(images), abs=1e-6)
    plain, nothing = model.outputs(images)
    assert nothing is None
    assert plain == pytest.approx(scores, abs=1e-6)


def test_plain_readers_see_every_picture_once_with_its_extras(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    label(scans, out, trained, scores=True, features=True, abstain_below=BELOW, single=True)
    partition, _ = entry_of(out)
    found = duckdb.execute(f"""
        SELECT model, count(*), count(DISTINCT uri), min(len(scores)), min(len(features)), count(*) FILTER (abstained)
        FROM read_parquet('{out}/parts/*/*.parquet', hive_partitioning = true) GROUP BY model
    """).fetchall()
    frame = pd.read_parquet(f"{out}/parts")
    uncertain = int((frame["score"] < BELOW).sum())
    width = len(frame["features"][0])
    assert 0 < uncertain < COUNT
    assert found == [(partition, COUNT, COUNT, 2, width, uncertain)]
    assert set(frame["model"].astype(str)) == {partition}
    assert sorted(frame["uri"]) == [str(scans / f"{number:03d}.jpg") for number in range(COUNT)]
    assert (frame["abstained"] == (frame["score"] < BELOW)).all()
    assert pads.dataset(f"{out}/parts", partitioning="hive").count_rows() == COUNT


def test_without_a_request_rows_are_what_they_were(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    summary = label(scans, out, trained)
    assert open_predictions(out).table.schema.equals(PREDICTIONS)
    assert entry_of(out)[0] == summary.model.split("@")[1]
    assert (summary.single, summary.review, summary.abstained) == ("", "", 0)
    assert names_in(open_store(out), "review") == names_in(open_store(out), "single") == []


def test_what_changes_a_row_is_in_the_partitions_name() -> None:
    def name(**options: Any) -> str:
        return partition_name(
            "3-0a1b2c3d", LabelConfig(source="s", predictions="p", model="m@1", **options)
        )

    assert name() == name(single=True, batch_size=4) == "3-0a1b2c3d"
    assert name(top_k=3) == "3-0a1b2c3d-top3"
    assert (
        name(top_k=3, scores=True, features=True, abstain_below=0.7)
        == "3-0a1b2c3d-top3-scores-features-abstain0.7"
    )
    assert name(abstain_below=0.1234567) != name(abstain_below=0.1234568)


def test_a_score_that_is_no_number_abstains() -> None:
    scores = np.array([[0.2, 0.8], [np.nan, np.nan], [0.4, 0.6]], dtype=np.float32)
    columns = OptionalColumns(abstain_below=0.8).rows(scores, None)
    assert [row["abstained"] for row in columns] == [False, True, True], (
        "0.8 itself is not below 0.8"
    )


def test_the_queue_holds_the_uncertain_least_certain_first(
    scans: Path, location: str, trained: Trained
) -> None:
    summary = label(scans, location, trained, abstain_below=BELOW)
    store = open_store(location)
    partition, entry = entry_of(location)
    folder = f"review/model={partition}/{Path(entry['objects']['path']).stem}"
    assert summary.review == store.uri(folder)
    assert names_in(store, "review") == [
        f"{folder}/{name}" for name in ("corrections.csv", "index.html", "queue.parquet")
    ]
    queue = from_parquet(store.get(f"{folder}/queue.parquet"))
    rows = open_predictions(location).table.to_pylist()
    expected = sorted(
        (row for row in rows if row["score"] < BELOW), key=lambda row: (row["score"], row["uri"])
    )
    assert queue.column_names == PREDICTIONS.names
    assert [row["uri"] for row in queue.to_pylist()] == [row["uri"] for row in expected]
    assert 0 < summary.abstained == len(queue) < summary.labelled == COUNT
    form = list(csv.DictReader(io.StringIO(store.get(f"{folder}/corrections.csv").decode())))
    assert form == [{"uri": row["uri"], "label": row["label"]} for row in expected]
    assert f"{summary.abstained} pictures: {summary.review}/index.html" in describe(vars(summary))


def test_a_form_that_was_edited_becomes_the_labels_of_a_dataset(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    summary = label(scans, str(tmp_path / "out"), trained, abstain_below=BELOW)
    path = Path(summary.review) / "corrections.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    changed = {row["uri"]: "lichen, or paint" for row in rows[::2]} | {rows[1]["uri"]: ""}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["uri", "label"])
        writer.writeheader()
        writer.writerows({**row, "label": changed.get(row["uri"], row["label"])} for row in rows)
    dataset = str(tmp_path / "dataset")
    config = IngestConfig(
        source=str(scans), dataset=dataset, labels=str(path), size=64, max_reject_rate=1.0
    )
    run_ingest(config, InlineExecutor())
    labels = {row["uri"]: row["label"] for row in open_dataset(dataset).index.to_pylist()}
    guessed = {row["uri"]: row["label"] for row in rows}
    assert len(labels) == COUNT
    for uri, found in labels.items():
        assert found == (changed.get(uri, guessed.get(uri)) or None)
    assert list(labels.values()).count("lichen, or paint") == len(rows[::2]) > 0


def test_a_new_queue_replaces_the_old_but_no_form_that_people_work_on(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")
    first = label(scans, out, trained, abstain_below=BELOW)
    (scans / "000.jpg").unlink()
    (scans / "new.jpg").write_bytes(jpeg(1, tint=(115, 110, 55)))
    second = label(scans, out, trained, abstain_below=BELOW)
    assert second.review != first.review
    assert not list(Path(first.review).glob("*")), "nobody has worked on it"
    form = Path(second.review) / "corrections.csv"
    form.write_text(form.read_text().replace("moss", "lichen"))
    (Path(second.review) / "notes.txt").write_text("of a reviewer")
    (scans / "newer.jpg").write_bytes(jpeg(2, tint=(115, 110, 55)))
    third = label(scans, out, trained, abstain_below=BELOW)
    assert sorted(path.name for path in Path(second.review).iterdir()) == [
        "corrections.csv",
        "notes.txt",
    ]
    assert any(str(form) in note for note in third.notes)
    assert (Path(third.review) / "index.html").exists()
    fourth = label(scans, out, trained, abstain_below=BELOW)
    assert (fourth.review, fourth.abstained, fourth.units_run) == (third.review, third.abstained, 0)
    assert "lichen" in form.read_text()


def test_what_a_killed_run_could_not_make_the_next_one_makes(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out = str(tmp_path / "out")

    def killed(queue: ReviewQueue) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(scans, out, trained, killed, abstain_below=BELOW, single=True)
    summary = label(scans, out, trained, abstain_below=BELOW, single=True)
    assert summary.units_run == 0
    assert (Path(summary.review) / "index.html").exists()
    assert pq.read_metadata(summary.single).num_rows == COUNT


def test_a_queue_is_bounded_and_says_how_many_it_leaves_out() -> None:
    rng = np.random.default_rng(3)

    def tables() -> Iterator[pa.Table]:
        for part in range(20):
            rows = [
                {
                    **dict.fromkeys(("sample_id", "etag", "label", "model_version"), "x"), "uri": f"/{part}/{row}",
                    "score": float(rng.random()), "top_labels": ["x"], "top_scores": [1.0], "abstained": row % 3 > 0,
                }
                for row in range(9)
            ]  # fmt: skip
            kept.extend(row for row in rows if row["abstained"])
            yield pa.Table.from_pylist(rows, schema=OptionalColumns(abstain_below=0.5).schema)

    kept: list[dict[str, Any]] = []
    table, below = least_certain(tables(), 7)
    assert below == len(kept) == 120
    assert table.column("uri").to_pylist() == [
        row["uri"] for row in sorted(kept, key=lambda row: float(row["score"]))[:7]
    ]


def test_a_single_file_holds_every_row_and_is_replaced(
    scans: Path, location: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "UNIT_PICTURES", 16)
    monkeypatch.setattr(single, "_GROUP_ROWS", 25)
    first = label(scans, location, trained, single=True, scores=True)
    store = open_store(location)
    partition, _ = entry_of(location)
    (name,) = names_in(store, "single")
    assert first.single == store.uri(name)
    assert name.startswith(f"single/model={partition}/")
    table = from_parquet(store.get(name))
    assert table.sort_by("uri") == open_predictions(location).table
    assert pq.read_metadata(io.BytesIO(store.get(name))).num_row_groups == 2, (
        "two of the four parts in each"
    )
    assert f"single file  {first.single}" in describe(vars(first))

    (scans / "new.jpg").write_bytes(jpeg(5))
    second = label(scans, location, trained, single=True, scores=True)
    assert names_in(store, "single") == [second.single.removeprefix(store.uri("single")[:-6])]
    assert len(from_parquet(store.get(names_in(store, "single")[0]))) == COUNT + 1
    (scans / "newer.jpg").write_bytes(jpeg(6))
    third = label(scans, location, trained, scores=True)
    assert third.single == ""
    assert names_in(store, "single") == [], "a file of what no longer stands would mislead"


def test_a_single_file_of_no_rows_can_be_read(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "empty.jpg").write_bytes(b"")
    summary = label(
        tmp_path / "scans", str(tmp_path / "out"), trained, single=True, abstain_below=0.5
    )
    assert pq.read_table(summary.single).schema.equals(PREDICTIONS)
    assert "There is nothing to review." in (Path(summary.review) / "index.html").read_text()


def test_a_single_picture_takes_no_such_flags(tmp_path: Path) -> None:
    def check(**options: Any) -> None:
        LabelConfig(**{"source": "a.jpg", "predictions": "-", "model": "m@1", **options})

    for options in ({"scores": True}, {"features": True}, {"abstain_below": 0.5}, {"single": True}):
        with pytest.raises(RequestError, match="only prints classes"):
            check(**options)
        check(**options, predictions="out")
    with pytest.raises(RequestError, match="0 to 1"):
        check(predictions="out", abstain_below=70)


def test_a_run_that_is_overtaken_while_it_writes_ends_with_what_is_current(
    scans: Path, tmp_path: Path, trained: Trained
) -> None:
    out, other = str(tmp_path / "out"), tmp_path / "other"
    other.mkdir()
    (other / "late.jpg").write_bytes(jpeg(7))
    drawn: list[int] = []

    def overtaken(queue: ReviewQueue) -> str:
        drawn.append(queue.below)
        if len(drawn) == 1:
            label(other, out, trained, abstain_below=BELOW, single=True)
        return review_page(queue)

    summary = label(scans, out, trained, overtaken, abstain_below=BELOW, single=True)
    assert len(drawn) == 1, "the rival's page is of both"
    partition, entry = entry_of(out)
    state = Path(entry["objects"]["path"]).stem
    store = open_store(out)
    assert summary.review == store.uri(f"review/model={partition}/{state}")
    assert {name.split("/")[2] for name in names_in(store, "review")} == {state}
    assert names_in(store, "single") == [f"single/model={partition}/predictions-{state}.parquet"]
    assert pq.read_metadata(summary.single).num_rows == COUNT + 1
