"""Tables that users give."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afinar.errors import RequestError
from afinar.sources.tables import read_table

NAN = float("nan")


def parquet(folder: Path, **columns: Any) -> str:
    pq.write_table(pa.table(columns), folder / "t.parquet")
    return str(folder / "t.parquet")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array(["007", None]), ["007", None]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([7, None], pa.int8()), ["7", None]),
        (pa.array([1.0, NAN]), ["1", None]),
        (pa.array([1.5, NAN], pa.float32()), ["1.5", None]),
        (pa.array([NAN, 2.0]).cast(pa.float16()), [None, "2"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([None, None], pa.null()), [None, None]),
    ],
)
def test_labels_that_are_text_or_numbers_become_text(
    values: pa.Array, texts: list[str | None], tmp_path: Path
) -> None:
    table = read_table("--labels", parquet(tmp_path, uri=["1", "2"], label=values), "label")
    assert table.column("label").to_pylist() == texts


@pytest.mark.parametrize(
    "values",
    [
        [["a"], ["b"]],
        [{"name": "a"}, {"name": "b"}],
        [b"a", b"b"],
        pa.array([[1], [2]], pa.list_(pa.int8(), 1)),
        pa.array([1, 2], pa.timestamp("s")),
        pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
    ],
    ids=["list", "struct", "binary", "fixed", "time", "map"],
)
@pytest.mark.parametrize("column", ["uri", "label", "split"])
def test_column_that_cannot_be_text_is_named(column: str, values: Any, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"uri": ["1", "2"], "label": ["a", "b"], column: values}
    with pytest.raises(RequestError, match=f"the column {column!r} is of type"):
        read_table("--labels", parquet(tmp_path, **columns), "label")


@pytest.mark.parametrize("column", ["uri", "label", "split"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_column_that_occurs_twice_is_named(column: str, ending: str, tmp_path: Path) -> None:
    names = ["uri", "label", "split", column]
    path = tmp_path / f"t.{ending}"
    if ending == "csv":
        path.write_text(f"{','.join(names)}\n1,a,test,x\n")
    else:
        pq.write_table(pa.Table.from_arrays([pa.array(["1"])] * 4, names), path)
    with pytest.raises(RequestError, match=f"2 columns {column!r}"):
        read_table("--labels", str(path), "label")


def test_other_columns_may_be_anything(tmp_path: Path) -> None:
    other = [{"box": [1, 2]}, None]
    location = parquet(tmp_path, uri=["1", "2"], label=["a", "b"], other=other)
    assert read_table("--labels", location, "label").column_names == ["uri", "label"]
    with pytest.raises(RequestError, match="no column 'group'; it has uri, label, other"):
        read_table("--group", location, "group")


def test_text_file_has_a_uri_in_each_line(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("\ufeffa b.jpg\r\n\n /data/é,1.jpg \n".encode())
    table = read_table("SOURCE", str(tmp_path / "t.txt"), "uri")
    assert table.to_pydict() == {"uri": ["a b.jpg", None, "/data/é,1.jpg"]}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.parquet", b""),
        ("t.parquet", b"PAR1 and then nothing of the kind PAR1"),
        ("t.parquet", b"\0" * 100),
        ("t.csv", b""),
        ("t.csv", b"uri,label\n1,2,3\n"),
        ("t.csv", b"uri,label\n\xff\xfe,a\n"),
        ("t.txt", b"\xff\xfe\n"),
    ],
)
def test_broken_table_is_refused_in_one_line(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(RequestError, match="is not a readable table") as refused:
        read_table("--labels", str(tmp_path / name), "label")
    assert "\n" not in str(refused.value)


def test_damage_anywhere_in_a_parquet_table_is_refused(tmp_path: Path) -> None:
    location = parquet(tmp_path, uri=["1", "2"] * 50, label=["a", "b"] * 50)
    data = Path(location).read_bytes()
    for position in range(0, len(data), 7):
        damaged = bytearray(data)
        damaged[position] ^= 0x55
        Path(location).write_bytes(damaged)
        try:
            read_table("--labels", location, "label")
        except RequestError as error:
            assert str(error).startswith("--labels")


@pytest.mark.parametrize("kind", ["pipe", "folder", "absent"])
@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "t.txt"])
def test_only_a_regular_file_is_a_table(name: str, kind: str, tmp_path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    with pytest.raises(RequestError, match="there is no such table"):
        read_table("--labels", str(tmp_path / name), "uri")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_tables_of_spreadsheets_are_read(
    encoding: str, delimiter: str, newline: str, tmp_path: Path
) -> None:
    rows = [("label", "uri"), ("Käfer", "a 1.jpg"), ("007", "b.jpg")]
    text = newline.join([*(delimiter.join(row) for row in rows), ""])
    (tmp_path / "labels.tsv").write_bytes(text.encode(encoding))
    table = read_table("--labels", str(tmp_path / "labels.tsv"), "label")
    assert table.to_pylist() == [
        {"uri": "a 1.jpg", "label": "Käfer"},
        {"uri": "b.jpg", "label": "007"},
    ]


def test_delimiter_inside_a_quoted_field_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text('uri,label\n"a;b.jpg","cat, big"\n')
    table = read_table("--labels", str(path), "label")
    assert table.to_pylist() == [{"uri": "a;b.jpg", "label": "cat, big"}]


def test_text_that_is_not_unicode_names_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes("uri,label\na.jpg,Käfer\n".encode("latin-1"))
    with pytest.raises(RequestError, match="save it as CSV UTF-8"):
        read_table("--labels", str(path), "label")
