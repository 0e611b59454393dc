"""Arrow and Parquet files that were made to crash their reader, or to fill its memory."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from afinar.errors import IntegrityError, RecordError
from afinar.storage.arrow import conform, from_ipc, from_parquet, get_table, to_ipc, to_parquet
from afinar.storage.objects import ObjectRef, put_object
from afinar.storage.open import open_store

WORDS = pa.table({"word": ["moss", "rust", "slate"], "row": pa.array([0, 1, 2], pa.int32())})


def test_tables_are_read_back() -> None:
    assert from_parquet(to_parquet(WORDS), rows=3).equals(WORDS)
    assert from_parquet(to_parquet(WORDS), ["row"]).column_names == ["row"]
    assert from_ipc(to_ipc(WORDS), rows=3).equals(WORDS)


@pytest.mark.parametrize("read", [from_parquet, from_ipc])
def test_what_is_no_table_is_refused(read: type[object]) -> None:
    whole = bytes(to_parquet(WORDS) if read is from_parquet else to_ipc(WORDS))
    flipped = bytearray(whole)
    flipped[len(flipped) // 2 : len(flipped) // 2 + 40] = b"\xff" * 40
    for data in (b"", b"PAR1", b"see the next box", whole[: len(whole) // 2], whole[30:]):
        with pytest.raises(RecordError, match="^x.arrow is not a readable table"):
            read(data, uri="x.arrow")  # type: ignore[call-arg]
    with pytest.raises(RecordError, match="another number of rows"):
        read(whole, uri="x.arrow", rows=4)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "column", ["word", "bytes", "list", "large"], ids=["string", "binary", "list", "large_string"]
)
def test_offsets_outside_of_the_file_are_refused(column: str) -> None:
    types = {
        "word": pa.string(), "bytes": pa.binary(), "list": pa.list_(pa.int8()),
        "large": pa.large_string(),
    }  # fmt: skip
    lengths = [7001, 7010, 7037]
    values = [[1] * n if column == "list" else b"x" * n for n in lengths]
    table = pa.table({column: pa.array(values, types[column])})
    width = 8 if column == "large" else 4
    ends = [0, 7001, 14011, 21048]
    offsets = b"".join(end.to_bytes(width, "little") for end in ends)
    wild = b"".join((2**30 + end * 4096).to_bytes(width, "little") for end in ends)
    data = bytes(to_ipc(table))
    assert data.count(offsets) == 1
    with pytest.raises(RecordError, match="not a readable table"):
        from_ipc(data.replace(offsets, wild))


def test_compressed_arrow_file_is_refused() -> None:
    table = pa.table({"word": ["a" * 1000] * 10_000})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    with pytest.raises(RecordError, match="larger than the file"):
        from_ipc(sink.getvalue().to_pybytes())


def written(table: pa.Table, groups: int) -> bytes:
    """Return a Parquet file of many equal row groups."""
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, table.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


@pytest.mark.parametrize(
    "column",
    [
        pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), ["a" * 50_000]),
        pa.array([7] * 2_000_000, pa.int64()),
        pa.array([b"\0" * 10_000_000]),  # one page of zeros
    ],
    ids=["dictionary", "numbers", "zeros"],
)
def test_small_parquet_file_with_many_rows_is_refused_before_they_are_decoded(
    column: pa.Array,
) -> None:
    data = written(pa.table({"x": column}), 30)
    assert len(data) < 400_000
    before = pa.total_allocated_bytes()
    with pytest.raises(RecordError, match="far more memory"):
        from_parquet(data)
    assert pa.total_allocated_bytes() - before < 50_000_000


def test_text_that_compresses_well_is_read() -> None:
    table = pa.table({
        "uri": [f"/data/archive/of/pictures/class/{number:08d}.jpg" for number in range(200_000)],
        "label": ["moss", "rust"] * 100_000,
        "split": ["train"] * 200_000,
    })  # fmt: skip
    data = to_parquet(table)
    assert from_parquet(data, rows=200_000).equals(table)


def test_text_that_is_not_unicode_is_refused() -> None:
    binary = pa.table({"x": pa.array([b"\xff\xfe"], pa.binary())})
    broken = binary.set_column(0, "x", pa.chunked_array([binary.column(0).chunk(0).view("string")]))
    for data, read in ((to_parquet(broken), from_parquet), (to_ipc(broken), from_ipc)):
        with pytest.raises(RecordError, match="not a readable table"):
            read(data)


def test_columns_must_have_the_types_of_the_schema() -> None:
    schema = pa.schema([("word", pa.large_string()), ("row", pa.int32())])
    assert conform(WORDS, schema, "x").schema == schema
    for table, message in (
        (WORDS.select(["row"]), "must have the column 'word' once"),
        (pa.table([["a"], ["b"], [1]], names=["word", "word", "row"]), "column 'word' once"),
        (WORDS.set_column(1, "row", pa.array(["a", "b", "c"])), "'row' is string, not int32"),
        (WORDS.set_column(1, "row", pa.array([0, None, 1], pa.int32())), "rows without a value"),
    ):
        with pytest.raises(RecordError, match=f"^x.*{message}"):
            conform(table, schema, "x", required=["row"])


def test_object_has_other_size_than_stated_it_is_not_read(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    ref = put_object(store, "lists/x", to_parquet(WORDS), 3)
    assert get_table(store, ref, WORDS.schema).equals(WORDS)
    for size in (ref.bytes - 1, ref.bytes + 1, 0, 10**15):
        stated = ObjectRef(path=ref.path, rows=3, bytes=size, sha256=ref.sha256)
        with pytest.raises(IntegrityError, match="not what was committed") as caught:
            get_table(store, stated, WORDS.schema)
        # A forged record may name any file: the message must not tell its size.
        assert str(ref.bytes) not in str(caught.value).replace(str(tmp_path), "")
