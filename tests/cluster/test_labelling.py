"""Labelling on a real Ray: pictures that kill or stop their worker; workers, raylets and drivers that are killed."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from afinar import open_predictions
from afinar.config.label import LabelConfig
from afinar.execution.executor import RayExecutor
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor, RetryPolicy

from tests.cluster.label_chaos import begun
from tests.cluster.test_chaos import REPOSITORY, RPC_CHAOS
from tests.conftest import Trained, jpeg, many_pictures, run_afinar

KILLER, STOPPER = b"kills its worker", b"is decoded for ever"


def dangerous(make_work: Callable[[], Any]) -> Any:
    """Work whose decoder meets two kinds of picture that end it."""
    work = make_work()
    meet_danger()
    return work


def dangerous_block(prepare: Callable[[Any], Any], block: Any) -> Any:
    """The same where others decode."""
    meet_danger()
    return prepare(block)


def meet_danger() -> None:
    """From now on this process' decoder ends, or never does, at such pictures."""
    module: Any = importlib.import_module("afinar.inference.picture_stream")
    real = module.decode

    def decode(data: bytes, *more: Any) -> Any:
        if data.endswith(KILLER):
            os._exit(1)
        if data.endswith(STOPPER):
            time.sleep(3600)
        return real(data, *more)

    module.decode = decode


class Dangerous(RayExecutor):
    """Ray, with that decoder."""

    def run_with_state(
        self,
        make_work: Callable[[], Any],
        tasks: Iterable[Any],
        care: RetryPolicy[Any] | None = None,
    ) -> Iterator[Any]:
        if care is not None and care.preprocessing is not None:
            care = replace(
                care,
                preprocessing=replace(
                    care.preprocessing, prepare=partial(dangerous_block, care.preprocessing.prepare)
                ),
            )
        return super().run_with_state(partial(dangerous, make_work), tasks, care)


def label(source: Path, out: Path, trained: Trained, **options: Any) -> LabelSummary:
    config = LabelConfig(
        source=str(source),
        predictions=str(out),
        model=trained.champion,
        precision="float32",
        **options,
    )
    return run_labelling(config, Dangerous(None)).summary


def archive(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(jpeg(number))
    return folder


def test_a_picture_that_kills_its_worker_is_a_reject_and_the_others_are_labelled(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    scans = archive(tmp_path / "scans", 96)
    (scans / "050.jpg").write_bytes(jpeg(50) + KILLER)
    (scans / "095.jpg").write_bytes(jpeg(95) + KILLER)
    summary = label(scans, tmp_path / "out", trained)
    assert (summary.labelled, summary.rejects_by_reason) == (94, {"killed_worker": 2})
    predictions = open_predictions(str(tmp_path / "out"))
    assert [Path(row["uri"]).name for row in predictions.rejects.to_pylist()] == [
        "050.jpg",
        "095.jpg",
    ]
    assert not list(open_store(str(tmp_path / "out")).walk("attempts")), (
        "nothing is left of the search"
    )
    next_attempt = label(scans, tmp_path / "out", trained)
    assert (next_attempt.units_run, next_attempt.skipped, next_attempt.rejected) == (0, 94, 2)


@pytest.mark.slow
def test_workers_that_are_fed_answer_alike(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    """As GPUs are: others decode. Without a GPU here the worker that is fed has a core, and so has who feeds it."""
    scans = archive(tmp_path / "scans", 200)
    (scans / "bad.jpg").write_bytes(b"no picture")
    config = LabelConfig(
        source=str(scans),
        predictions=str(tmp_path / "fed"),
        model=trained.champion,
        precision="float32",
    )
    fed = run_labelling(config, RayExecutor(None, workers=1, always_preprocess=True)).summary
    assert (fed.labelled, fed.rejects_by_reason) == (200, {"unidentified": 1})
    run_labelling(replace(config, predictions=str(tmp_path / "fused")), InlineExecutor())
    assert (
        open_predictions(str(tmp_path / "fed")).table
        == open_predictions(str(tmp_path / "fused")).table
    )


@pytest.mark.slow
def test_a_picture_that_kills_whoever_decodes_it_is_a_reject_where_workers_are_fed(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    scans = archive(tmp_path / "scans", 24)
    (scans / "005.jpg").write_bytes(jpeg(5) + KILLER)
    config = LabelConfig(
        source=str(scans), predictions=str(tmp_path / "out"), model=trained.champion
    )
    summary = run_labelling(config, Dangerous(None, workers=1, always_preprocess=True)).summary
    assert (summary.labelled, summary.rejects_by_reason) == (23, {"killed_worker": 1})


@pytest.mark.slow
def test_a_picture_that_stops_its_worker_is_a_reject_too(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    scans = archive(tmp_path / "scans", 12)
    (scans / "005.jpg").write_bytes(jpeg(5) + STOPPER)
    summary = label(scans, tmp_path / "out", trained, unit_timeout_s=2.0)
    assert (summary.labelled, summary.rejects_by_reason) == (11, {"killed_worker": 1})


PICTURES = 2400


@dataclass(frozen=True)
class Undisturbed:
    """An archive, and what a labelling of it writes when nothing goes wrong."""

    scans: Path
    table: pa.Table
    units: int


@pytest.fixture(scope="module")
def undisturbed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    scans = many_pictures(folder / "scans", PICTURES)
    config = LabelConfig(
        source=str(scans),
        predictions=str(folder / "out"),
        model=trained.champion,
        precision="float32",
    )
    summary = run_labelling(config, InlineExecutor()).summary
    assert summary.labelled == PICTURES
    return Undisturbed(scans, open_predictions(str(folder / "out")).table, summary.units_run)


def require_same(out: str, wanted: Undisturbed) -> None:
    """Every picture once with its answer. A unit tried again goes picture by picture, which rounds otherwise."""
    table = open_predictions(out).table
    exact = ["uri", "etag", "sample_id", "label", "model_version"]
    assert table.select(exact) == wanted.table.select(exact)
    np.testing.assert_allclose(
        table.column("score").to_numpy(), wanted.table.column("score").to_numpy(), atol=1e-5
    )
    store = open_store(out)
    parts = pa.concat_tables(from_parquet(store.get(info.name)) for info in store.walk("parts"))
    assert sorted(parts.column("uri").to_pylist()) == table.column("uri").to_pylist(), (
        "as a plain reader sees it"
    )


def chaos(
    victim: str, seed: int, wanted: Undisturbed, out: str, folder: Path, trained: Trained
) -> None:
    """One run of which something is killed; it is right, and no more was done again than was under way.

    In float32: a unit that is tried again goes picture by picture, and a reduced precision rounds by the batch.
    """
    audit = folder / "audit"
    audit.mkdir()
    words = [
        "tests.cluster.label_chaos",
        victim,
        str(seed),
        str(wanted.scans),
        out,
        trained.champion,
        str(audit),
    ]
    command = [sys.executable, "-m", *words]
    if victim == "driver":
        command[3] = "none"
        job = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not begun(audit):
            assert job.poll() is None, "it ended before it began"
            time.sleep(0.02)
        time.sleep(2.5 * random.Random(seed).random())
        assert job.poll() is None, "it was over before it was killed"
        job.kill()
        job.wait()
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    require_same(out, wanted)
    # A feeder's blocks are prepared again without the worker's noticing.
    under_way = {"driver": 2, "feeder": 0}.get(victim, said["killed"])
    assert len(begun(audit)) - wanted.units <= under_way
    if victim != "driver":
        assert said["killed"] >= 1, "the job was over before anything was killed"


@pytest.mark.slow
def test_workers_killed_at_random_moments_lose_and_repeat_nothing(
    undisturbed: Undisturbed, trained: Trained, tmp_path: Path
) -> None:
    chaos("actor", 0, undisturbed, str(tmp_path / "out"), tmp_path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("victim", ["actor", "feeder", "raylet", "driver"])
def test_whatever_is_killed_the_answers_are_the_same(
    undisturbed: Undisturbed,
    trained: Trained,
    location: str,
    tmp_path: Path,
    victim: str,
    seed: int,
) -> None:
    chaos(victim, seed, undisturbed, f"{location}/out", tmp_path, trained)


@pytest.mark.slow
def test_messages_lost_between_driver_and_workers_change_nothing(
    undisturbed: Undisturbed, trained: Trained, tmp_path: Path
) -> None:
    words = [
        "label",
        str(undisturbed.scans),
        "out",
        "--model",
        trained.champion,
        "--precision",
        "float32",
        "--workers",
        "2",
        "--json",
    ]
    done = run_afinar(*words, cwd=tmp_path, env={"RAY_testing_rpc_failure": RPC_CHAOS})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["labelled"] == PICTURES
    require_same(str(tmp_path / "out"), undisturbed)
