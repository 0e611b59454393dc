"""Arrow's threads hold no memory of Python: such a thread could abort a process that exits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afinar.sources.tables import read_table
from afinar.storage.arrow import from_parquet, group_by, to_parquet

PACKAGE = Path(sys.modules["afinar"].__path__[0])


def references(data: bytes, monkeypatch: pytest.MonkeyPatch, read: Any) -> list[int]:
    """Return how many references to `data` each read of a file adds, as seen when it is opened."""
    added: list[int] = []
    before = sys.getrefcount(data)
    parquet_file, csv = pq.ParquetFile, pa.csv.read_csv

    def opened(function: Any) -> Any:
        def call(source: Any, *arguments: Any, **options: Any) -> Any:
            assert isinstance(source, pa.BufferReader), "not an object of Python"
            added.append(sys.getrefcount(data) - before)
            return function(source, *arguments, **options)

        return call

    monkeypatch.setattr(pq, "ParquetFile", opened(parquet_file))
    monkeypatch.setattr(pa.csv, "read_csv", opened(csv))
    read()
    return added


def test_parquet_is_read_from_memory_of_arrow(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"a": [1, 2, 3]})
    data = bytes(to_parquet(table))

    def read() -> None:
        assert from_parquet(data).equals(table)

    # One reference is the argument of `from_parquet`; a buffer of Arrow would hold another.
    assert references(data, monkeypatch, read) == [1]


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_tables_of_users_are_read_from_memory_of_arrow(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"labels.{ending}"
    table = pa.table({"uri": ["a.jpg"], "label": ["moss"]})
    if ending == "csv":
        path.write_text("uri,label\na.jpg,moss\n")
    else:
        path.write_bytes(to_parquet(table))
    assert references(b"", monkeypatch, lambda: read_table("--labels", str(path), "label"))


def test_rows_are_grouped_in_the_calling_thread_everywhere() -> None:
    users = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if ".group_by(" in path.read_text()
    ]
    assert users == ["storage/arrow.py"]
    groups = group_by(pa.table({"a": [1, 1, 2]}), ["a"]).aggregate([([], "count_all")])
    assert groups.column("count_all").to_pylist() == [2, 1]


EXITS = """
import os, sys
import pyarrow.parquet
from afinar.storage.arrow import from_parquet
data, failed = open(sys.argv[1], "rb").read(), 0
for _ in range(int(sys.argv[2])):
    process = os.fork()
    if not process:
        from_parquet(data)
        sys.exit(0)
    failed += os.waitpid(process, 0)[1] != 0
print(failed)
"""


@pytest.mark.slow
def test_process_that_exits_right_after_reading_ends_cleanly(tmp_path: Path) -> None:
    """Read with memory of Python, 6 of 500 such processes ended with SIGABRT."""
    path = tmp_path / "table.parquet"
    table = pa.table({name: [str(row) * 20 for row in range(3000)] for name in "abcdefgh"})
    pq.write_table(table, path, row_group_size=200)
    done = subprocess.run(
        [sys.executable, "-c", EXITS, str(path), "1000"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "0\n", done.stderr[-2000:]
