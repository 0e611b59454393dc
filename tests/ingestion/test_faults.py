"""An ingest from bucket to bucket with faults of the server, of the network and of the disk."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.errors import AfinarError, RequestError, StorageError
from afinar.storage.open import open_store
from tests.archives import ingest
from tests.bad_network import PICTURES
from tests.conftest import make_archive
from tests.datasets import shard_names
from tests.faults import Fault, FaultProxy

GET_PICTURE = r"^GET .*/pictures/.*\.jpg"


@pytest.fixture
def dataset(bucket: str) -> str:
    return f"{bucket}/dataset"


def sorted_index(dataset: str) -> pa.Table:
    return open_dataset(dataset).index.sort_by("uri")


def versions(dataset: str) -> list[str]:
    return [info.name.removeprefix("manifests/") for info in open_store(dataset).walk("manifests")]


def test_faulty_network_dataset_is_that_of_a_faultless_run(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set()
    ingest(source, f"{dataset}-faultless")
    faultless = fault_proxy.requests()
    fault_proxy.set(
        *(Fault(kind, share=0.05 / 3) for kind in ("500", "503", "reset")),
        *(
            Fault(kind, match=GET_PICTURE, share=0.03, delay_s=5)
            for kind in ("truncate", "stall", "flip")
        ),
        Fault("409", conditional=True, share=0.3),
        seed=3,
    )
    summary = ingest(source, dataset)
    faults = fault_proxy.faults()
    assert fault_proxy.requests() <= 1.5 * faultless + 20
    fault_proxy.set()
    assert (summary.samples, summary.rejects) == (PICTURES, 0)
    assert len(faults) >= 5, faults
    assert sorted_index(dataset).equals(sorted_index(f"{dataset}-faultless"))
    assert shard_names(dataset) == shard_names(f"{dataset}-faultless"), "they contain the hashes"
    assert versions(dataset) == ["00000001.json"]


def test_lost_reply_to_a_manifest_publishes_it_once(
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


def test_outage_of_the_server_ends_the_job_and_leaves_the_dataset(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    ingest(source, dataset)
    before = open_dataset(dataset).index
    for number in range(20):
        name = f"rust/{number:03d}.jpg"
        data = open_store(source).get(name)
        open_store(source).delete(name)
        open_store(source).put_if_absent(name, data + b"later")
    fault_proxy.set(Fault("reset", after=30))
    started = time.monotonic()
    with pytest.raises(AfinarError) as caught:
        ingest(source, dataset)
    assert time.monotonic() - started < 60  # 30 s with the timeouts of a job
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
def test_forbidden_listing_or_target_ends_the_job_at_once(
    source: str, dataset: str, fault_proxy: FaultProxy, match: str, words: str
) -> None:
    fault_proxy.set(Fault("403", match=match))
    with pytest.raises(RequestError, match=words):
        ingest(source, dataset)
    assert fault_proxy.requests() <= 16
    fault_proxy.set()
    assert versions(dataset) == []


def test_forbidden_picture_is_a_reject_until_it_may_be_read(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("403", match=r"^GET .*/moss/007\.jpg"))
    summary = ingest(source, dataset)
    assert (summary.samples, summary.rejects_by_reason) == (PICTURES - 1, {"forbidden": 1})
    fault_proxy.set()
    assert ingest(source, dataset).samples == PICTURES


def test_store_without_conditional_puts_is_refused(
    source: str, dataset: str, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("unconditional", conditional=True))
    with pytest.raises(RequestError, match="If-None-Match") as caught:
        ingest(source, dataset)
    assert caught.value.exit_code == 2
    fault_proxy.set()
    assert list(open_store(dataset).walk()) == []


def test_full_disk_ends_the_job_and_leaves_the_dataset(tmp_path: Path) -> None:
    archive, folder = make_archive(tmp_path / "pictures", 20), tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the permission to mount a file system")
    try:
        dataset = str(folder / "dataset")
        assert ingest(archive, dataset, size=32).version == 1
        before = open_dataset(dataset).index
        more = make_archive(tmp_path / "more", 60, ("rust", "slate"))
        shutil.copytree(more, archive, dirs_exist_ok=True)
        with pytest.raises(StorageError, match="no space left") as caught:
            ingest(archive, dataset, size=32)
        assert caught.value.exit_code == 1
        assert str(folder) in str(caught.value)
        assert versions(dataset) == ["00000001.json"]
        assert open_dataset(dataset).index.equals(before)
        assert not list(folder.rglob(".tmp-*"))
    finally:
        subprocess.run(["umount", str(folder)], check=True)
