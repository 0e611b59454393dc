"""The single file: all rows of a partition, replaced when they change."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afinar import open_predictions
from afinar.cli.label import describe
from afinar.labelling import driver
from afinar.predictions import single_file
from afinar.predictions.schema import PREDICTIONS
from afinar.predictions.single_file import csv_path
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from tests.archives import label
from tests.conftest import Trained, jpeg
from tests.predictions.folders import COUNT, current_partition, names_in


def test_pictures_are_added_the_single_file_is_replaced(
    scans: Path, location: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "UNIT_PICTURES", 16)
    monkeypatch.setattr(single_file, "_GROUP_ROWS", 25)
    first = label(scans, location, trained, single=True, scores=True)
    store = open_store(location)
    csv_name, name = sorted(names_in(store, "single"))
    assert first.single == store.uri(name)
    assert name.startswith(f"single/model={current_partition(location).name}/")
    table = from_parquet(store.get(name))
    assert table.sort_by("uri") == open_predictions(location).table
    row_groups = pq.read_metadata(io.BytesIO(store.get(name))).num_row_groups
    assert row_groups == 2, "two of the four parts in each"
    assert f"single file  {first.single}" in describe(vars(first))

    (scans / "new.jpg").write_bytes(jpeg(5))
    second = label(scans, location, trained, single=True, scores=True)
    csv_name, name = sorted(names_in(store, "single"))
    assert second.single == store.uri(name)
    assert len(from_parquet(store.get(name))) == COUNT + 1
    assert len(store.get(csv_name).splitlines()) == COUNT + 2, "with a heading"

    (scans / "newer.jpg").write_bytes(jpeg(6))
    third = label(scans, location, trained, scores=True)
    assert third.single == ""
    assert names_in(store, "single") == [], "a file of old rows would mislead"


def test_partition_has_no_rows_its_single_file_can_be_read(
    tmp_path: Path, trained: Trained
) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "empty.jpg").write_bytes(b"")
    summary = label(
        tmp_path / "scans", str(tmp_path / "out"), trained, single=True, abstain_below=0.5
    )
    assert pq.read_table(summary.single).schema.equals(PREDICTIONS)
    heading = '"path","label","score","sample_id","etag","model_version"'
    assert Path(csv_path(summary.single)).read_text() == f"{heading}\n"


def test_csv_has_the_rows_and_no_cell_begins_a_formula(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("a.jpg", "b,c.jpg"):
        (tmp_path / "scans" / name).write_bytes(jpeg(len(name)))
    summary = label(tmp_path / "scans", str(tmp_path / "out"), trained, single=True)
    with Path(csv_path(summary.single)).open(newline="") as source:
        rows = list(csv.DictReader(source))
    wanted = open_predictions(str(tmp_path / "out")).table.to_pylist()
    assert [row["path"] for row in rows] == [row["uri"] for row in wanted]
    assert [row["label"] for row in rows] == [row["label"] for row in wanted]
    assert [float(row["score"]) for row in rows] == pytest.approx(
        [row["score"] for row in wanted], abs=1e-6
    )

    row = {name: pa.array(["=1+1"]) for name in ("uri", "label")}
    (cells,) = single_file._as_cells(pa.table(row)).to_pylist()
    assert cells == {"path": "'=1+1", "label": "'=1+1"}


def test_file_that_an_earlier_run_lacks_is_written(tmp_path: Path, trained: Trained) -> None:
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a.jpg").write_bytes(jpeg(1))
    arguments = (tmp_path / "scans", str(tmp_path / "out"), trained)
    table = Path(csv_path(label(*arguments, single=True).single))
    table.unlink()
    label(*arguments, single=True)
    assert table.exists()
