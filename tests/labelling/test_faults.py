"""A whole labelling between buckets while server and network misbehave."""

from __future__ import annotations

import time

import pytest
from afinar import open_predictions
from afinar.config.label import LabelConfig
from afinar.errors import StorageError
from afinar.labelling.driver import Labelling, LabelSummary
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor

from tests.bad_network import PICTURES
from tests.conftest import Trained
from tests.faults import Fault, FaultProxy

GET_PICTURE = r"^GET .*/pictures/.*\.jpg"


@pytest.fixture
def out(bucket: str) -> str:
    return f"{bucket}/out"


def label(source: str, out: str, trained: Trained) -> LabelSummary:
    config = LabelConfig(
        source=source, predictions=out, model=trained.champion, precision="float32"
    )
    return Labelling(config, InlineExecutor()).run()


def test_a_bad_network_changes_no_answer(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    label(source, f"{out}-calm", trained)
    fault_proxy.set(
        *(Fault(kind, share=0.05 / 3) for kind in ("500", "503", "reset")),
        *(
            Fault(kind, match=GET_PICTURE, share=0.03, delay_s=5)
            for kind in ("truncate", "stall", "flip")
        ),
        Fault("409", conditional=True, share=0.3),
        seed=4,
    )
    summary = label(source, out, trained)
    met = fault_proxy.faults()
    fault_proxy.set()
    assert (summary.labelled, summary.rejected) == (PICTURES, 0)
    assert len(met) >= 5, met
    assert open_predictions(out).table == open_predictions(f"{out}-calm").table


def test_a_storm_of_503_is_waited_out(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("503", match=GET_PICTURE, share=0.25), seed=5)
    assert label(source, out, trained).labelled == PICTURES
    assert fault_proxy.faults()["503"] >= 8


def test_an_outage_ends_the_job_and_the_next_one_completes_it(
    source: str, out: str, trained: Trained, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("reset", after=40))
    started = time.monotonic()
    with pytest.raises(StorageError, match="s3://"):
        label(source, out, trained)
    assert time.monotonic() - started < 120
    fault_proxy.set()
    assert label(source, out, trained).labelled == PICTURES
    uris = [row["uri"] for row in open_predictions(out).table.to_pylist()]
    assert uris == sorted(info.uri for info in open_store(source).walk())
