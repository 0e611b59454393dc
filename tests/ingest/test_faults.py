"""A whole ingest between buckets while server, network and disk misbehave."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.errors import AfinarError, RequestError, StorageError
from afinar.ingest.driver import IngestSummary, run_ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.bad_network import PICTURES
from tests.conftest import make_archive
from tests.faults import Fault, FaultProxy

GET_PICTURE = r"^GET .*/pictures/.*\.jpg"


@pytest.fixture
def dataset(bucket: str) -> str:
    return f"{bucket}/dataset"


def ingest(source: str, dataset: str, **options: Any) -> IngestSummary:
    config = IngestConfig(source=source, dataset=dataset, size=32, **options)
    return run_ingest(config, InlineExecutor()).summary


def content(dataset: str) -> tuple[pa.Table, set[str]]:
    """What a dataset says: its index and the names, which are hashes, of its shards."""
    index = open_dataset(dataset).index.sort_by("uri")
    return index, {info.name for info in open_store(dataset).walk("shards")}


def versions(dataset: str) -> list[str]:
    return [info.name.removeprefix("manifests/") for info in open_store(dataset).walk("manifests")]


def test_a_bad_network_changes_nothing(source: str, dataset: str, fault_proxy: FaultProxy) -> None:
    fault_proxy.set()
    ingest(source, f"{dataset}-calm")
    calm = fault_proxy.requests()
    kinds = ("500", "503", "reset")
    spoilt = ("truncate", "stall", "flip")
    fault_proxy.set(
        *(Fault(kind, share=0.05 / 3) for kind in kinds),
        *(Fault(kind, match=GET_PICTURE, share=0.03, delay_s=5) for kind in spoilt),
        Fault("409", conditional=True, share=0.3),
        seed=3,
    )
    summary = ingest(source, dataset)
    met = fault_proxy.faults()
    assert fault_proxy.requests() <= 1.5 * calm + 20
    fault_proxy.set()
    assert (summary.samples, summary.rejects) == (PICTURES, 0)
    assert len(met) >= 5, met
    (index, shards), (expected, expected_shards) = content(dataset), content(f"{dataset}-calm")
    assert index.equals(expected)
    assert shards == expected_shards
    assert versions(dataset) == ["00000001.json"]


def test_a_lost_reply_to_the_manifest_publishes_once(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("lost_reply", match=r"^PUT .*/dataset/.*", share=0.5), seed=1)
    assert ingest(source, dataset).version == 1
    fault_proxy.set(Fault("lost_reply", match=r"^PUT .*/manifests/", times=1))
    open_store(source).delete("moss/000.jpg")
    assert ingest(source, dataset).version == 2
    assert fault_proxy.faults() == {"lost_reply": 1}
    assert sorted(versions(dataset)) == ["00000001.json", "00000002.json"]
    assert len(open_dataset(dataset).index) == PICTURES - 1


def test_an_outage_ends_the_job_and_leaves_the_dataset(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    ingest(source, dataset)
    before = open_dataset(dataset).index
    for number in range(20):
        name = f"rust/{number:03d}.jpg"
        data = open_store(source).get(name)
        open_store(source).delete(name)
        open_store(source).put_if_absent(name, data + b"later")
    fault_proxy.set(Fault("reset", after=20))
    started = time.monotonic()
    with pytest.raises(AfinarError) as caught:
        ingest(source, dataset)
    assert time.monotonic() - started < 60  # 30 s with a job's own patience
    assert caught.value.exit_code == 1
    assert isinstance(caught.value, StorageError)
    assert "s3://" in str(caught.value)
    fault_proxy.set()
    assert versions(dataset) == ["00000001.json"]
    assert open_dataset(dataset).index.equals(before)
    assert ingest(source, dataset).version == 2


@pytest.mark.parametrize(
    ("match", "words"),
    [
        (
            r"^GET .*list-type=2.*prefix=[^&]*pictures|^GET .*prefix=[^&]*pictures.*list-type=2",
            "pictures",
        ),
        (r"^PUT", "dataset"),
    ],
    ids=["listing", "target"],
)
def test_what_is_forbidden_ends_the_job_at_once(
    source: str, dataset: str, fault_proxy: FaultProxy, match: str, words: str
) -> None:
    fault_proxy.set(Fault("403", match=match))
    with pytest.raises(RequestError, match=words):
        ingest(source, dataset)
    assert fault_proxy.requests() <= 12
    fault_proxy.set()
    assert versions(dataset) == []


def test_one_forbidden_picture_is_a_reject(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("403", match=r"^GET .*/moss/007\.jpg"))
    summary = ingest(source, dataset)
    assert (summary.samples, summary.rejects_by_reason) == (PICTURES - 1, {"forbidden": 1})
    fault_proxy.set()
    assert ingest(source, dataset).samples == PICTURES


def test_a_store_without_conditional_puts_is_refused(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("unconditional", conditional=True))
    with pytest.raises(RequestError, match="If-None-Match") as caught:
        ingest(source, dataset)
    assert caught.value.exit_code == 2
    fault_proxy.set()
    assert list(open_store(dataset).walk()) == []


def test_a_full_disk_ends_the_job_and_leaves_the_dataset(tmp_path: Path) -> None:
    archive, folder = make_archive(tmp_path / "pictures", 20), tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small file system")
    try:
        dataset = str(folder / "dataset")
        assert ingest(str(archive), dataset).version == 1
        before = open_dataset(dataset).index
        more = make_archive(tmp_path / "more", 60, ("rust", "slate"))
        shutil.copytree(more, archive, dirs_exist_ok=True)
        with pytest.raises(StorageError, match="no space left") as caught:
            ingest(str(archive), dataset)
        assert caught.value.exit_code == 1
        assert str(folder) in str(caught.value)
        assert versions(dataset) == ["00000001.json"]
        assert open_dataset(dataset).index.equals(before)
        assert not list(folder.rglob(".tmp-*"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)
