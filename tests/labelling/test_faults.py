"""A whole labelling between two buckets with faults of the server and the network."""

from __future__ import annotations

import time

import pytest

from afinar import open_predictions
from afinar.errors import StorageError
from afinar.storage.open import open_store
from tests.archives import label
from tests.bad_network import PICTURES
from tests.conftest import Trained
from tests.faults import Fault, FaultProxy

GET_PICTURE = r"^GET .*/pictures/.*\.jpg"


@pytest.fixture
def out(bucket: str) -> str:
    return f"{bucket}/out"


def test_network_has_faults_predictions_are_the_same(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    label(source, f"{out}-calm", trained, precision="float32")
    fault_proxy.set(
        *(Fault(kind, share=0.05 / 3) for kind in ("500", "503", "reset")),
        *(
            Fault(kind, match=GET_PICTURE, share=0.03, delay_s=5)
            for kind in ("truncate", "stall", "flip")
        ),
        Fault("409", conditional=True, share=0.3),
        seed=4,
    )
    summary = label(source, out, trained, precision="float32")
    faults = fault_proxy.faults()
    fault_proxy.set()
    assert (summary.labelled, summary.rejected) == (PICTURES, 0)
    assert len(faults) >= 5, faults
    assert open_predictions(out).table == open_predictions(f"{out}-calm").table


def test_server_answers_503_often_all_pictures_are_labelled(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("503", match=GET_PICTURE, share=0.25), seed=5)
    assert label(source, out, trained, precision="float32").labelled == PICTURES
    assert fault_proxy.faults()["503"] >= 8


def test_server_fails_job_ends_and_next_run_completes_it(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("reset", after=40))
    started = time.monotonic()
    with pytest.raises(StorageError, match="s3://"):
        label(source, out, trained, precision="float32")
    assert time.monotonic() - started < 120
    fault_proxy.set()
    assert label(source, out, trained, precision="float32").labelled == PICTURES
    uris = [row["uri"] for row in open_predictions(out).table.to_pylist()]
    assert uris == sorted(info.uri for info in open_store(source).walk())
