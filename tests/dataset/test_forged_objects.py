"""Lists, indexes and shards that were changed, with hashes that fit: refused in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.cli.main import main
from afinar.dataset.gc import verify_dataset
from afinar.dataset.manifest import get_manifests
from afinar.errors import AfinarError, RecordError
from afinar.storage.arrow import from_ipc, from_parquet, to_ipc, to_parquet
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from tests.archives import ingest

Rows = list[dict[str, Any]]


@pytest.fixture
def dataset(archive: Path, tmp_path: Path) -> Path:
    ingest(archive, tmp_path / "dataset", size=32)
    return tmp_path / "dataset"


def reseal(
    dataset: Path,
    *,
    rows: Callable[[Rows], Any] = lambda _: None,
    index: Callable[[bytes], bytes] = lambda data: data,
    shard: Callable[[bytes], bytes] = lambda data: data,
) -> None:
    """Change objects and their list, and make all sizes and hashes fit."""
    head = dataset / "manifests" / "00000001.json"
    record = json.loads(head.read_text())
    path = dataset / record["objects"]["path"]
    entries = from_parquet(path.read_bytes()).to_pylist()
    for entry in entries:
        change = {"index": index, "shard": shard}[entry["kind"]]
        data = change((dataset / entry["path"]).read_bytes())
        (dataset / entry["path"]).chmod(0o644)
        (dataset / entry["path"]).write_bytes(data)
        entry.update(bytes=len(data), sha256=sha256(data))
    rows(entries)

    data = bytes(to_parquet(pa.Table.from_pylist(entries)))
    path.chmod(0o644)
    path.write_bytes(data)
    record["objects"].update(bytes=len(data), sha256=sha256(data), rows=len(entries))
    head.write_text(json.dumps(record))


def column(name: str, value: Any) -> Callable[[bytes], bytes]:
    """Return a change of an index that sets a whole column."""

    def change(data: bytes) -> bytes:
        table = from_parquet(data)
        position = table.column_names.index(name)
        field = table.schema.field(name)
        if value is None or isinstance(value, int | str):
            field = pa.field(name, field.type if value is None else pa.scalar(value).type)
        values = pa.array([value] * len(table), field.type)
        return bytes(to_parquet(table.set_column(position, field, values)))

    return change


def without_last_row(data: bytes) -> bytes:
    return bytes(to_ipc(from_ipc(data).slice(0, len(from_ipc(data)) - 1)))


def without_pictures(data: bytes) -> bytes:
    return bytes(to_ipc(from_ipc(data).drop_columns(["image"])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": lambda rows: rows[0].update(rows=-5)}, "row 0: .*no number"),
        ({"rows": lambda rows: rows[0].update(rows=10**12)}, "another number of rows"),
        ({"rows": lambda rows: rows[0].update(kind="spell")}, "row 0 has the unknown kind 'spell'"),
        ({"rows": lambda rows: rows[0].update(path="../x")}, "row 0: '../x' is not the name"),
        ({"rows": lambda rows: rows[0].update(sha256="x")}, "row 0: 'x' is not a SHA-256"),
        ({"rows": lambda rows: rows[0].update(sha256=None)}, "'sha256' has rows without a value"),
        ({"rows": lambda rows: [row.pop("bytes") for row in rows]}, "have the column 'bytes' once"),
        ({"rows": lambda rows: [row.update(bytes="1") for row in rows]}, "not what was committed"),
        ({"rows": lambda rows: [row.update(bytes="x") for row in rows]}, "'bytes' is string"),
        ({"index": column("row", -1)}, "names no row of its shards"),
        ({"index": column("row", 2**31 - 1)}, "names no row of its shards"),
        ({"index": column("row", None)}, "'row' has rows without a value"),
        ({"index": column("shard", "shards/none.arrow")}, "names no row of its shards"),
        ({"index": column("uri", "http://127.0.0.1:1/x.jpg")}, "leads elsewhere than to a file"),
        ({"index": column("uri", "relative.jpg")}, "leads elsewhere than to a file"),
        ({"index": column("sample_id", None)}, "'sample_id' has rows without a value"),
        ({"index": column("label", 7)}, None),
        ({"index": lambda data: data[: len(data) // 2]}, "not a readable table"),
        ({"shard": lambda data: data[: len(data) // 2]}, "not a readable table"),
        ({"shard": lambda _: b""}, "not a readable table"),
        ({"shard": without_last_row}, "another number of rows"),
        ({"shard": without_pictures}, "have the column 'image' once"),
    ],
)
def test_object_that_is_not_what_its_list_says_is_refused(
    change: dict[str, Any], message: str | None, dataset: Path
) -> None:
    reseal(dataset, **change)
    if message is None:
        open_dataset(str(dataset)).read([0])
        return
    with pytest.raises(AfinarError, match=message) as caught:
        open_dataset(str(dataset)).read([0, 1])
    assert "\n" not in str(caught.value)


def test_uri_that_leads_to_http_is_found_before_a_training_starts(
    dataset: Path, tmp_path: Path
) -> None:
    from afinar.training.task import plan_training
    from tests.conftest import Trained
    from tests.training.runs import config

    reseal(dataset, index=column("uri", "http://127.0.0.1:1/x.jpg"))
    training = config(Trained(tmp_path, str(dataset), ""), tmp_path / "models")
    with pytest.raises(RecordError, match="leads elsewhere than to a file or s3://"):
        plan_training(training, "run")
    assert not (tmp_path / "models" / "unfinished").exists()


def test_status_of_a_forged_list_is_one_sentence(
    dataset: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reseal(dataset, rows=lambda rows: rows[0].update(path="../../../../dev/zero"))
    for argv in (["status", str(dataset)], ["status", str(dataset), "--verify"]):
        assert main(argv) in {1, 2}
        error = capfd.readouterr().err
        assert "is not the name of an object" in error
        assert "Traceback" not in error


@pytest.mark.parametrize("change", ["index", "shard"])
def test_verification_reports_tables_that_are_cut_though_their_hashes_fit(
    change: str, dataset: Path
) -> None:
    store = open_store(str(dataset))
    assert verify_dataset(store, get_manifests(store)).damaged == []
    cut: dict[str, Any] = {change: lambda data: data[: len(data) // 2]}
    reseal(dataset, **cut)
    (damage,) = verify_dataset(store, get_manifests(store)).damaged
    assert damage.path.startswith(change)
    assert "not a readable table" in damage.error
