"""Labelling with faults, on a real Ray and without: bad pictures, and processes that are killed."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from afinar import open_predictions
from afinar.execution.executor import RayExecutor
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from afinar.units.executor import Executor
from tests.archives import flat_archive, label, picture
from tests.cluster.dangerous import KILLER, STOPPER, DangerousExecutor
from tests.cluster.faults import REPOSITORY, RPC_CHAOS
from tests.cluster.label_chaos import started_units
from tests.conftest import Trained, many_pictures, run_afinar


def test_picture_kills_its_worker_it_is_a_reject_and_the_others_are_labelled(
    killable_executor: Executor, trained: Trained, tmp_path: Path
) -> None:
    executor = DangerousExecutor(killable_executor)
    scans = flat_archive(tmp_path / "scans", 96)
    (scans / "050.jpg").write_bytes(picture(50) + KILLER)
    (scans / "095.jpg").write_bytes(picture(95) + KILLER)
    summary = label(scans, tmp_path / "out", trained, executor, precision="float32")
    assert (summary.labelled, summary.rejects_by_reason) == (94, {"killed_worker": 2})
    predictions = open_predictions(str(tmp_path / "out"))
    assert [Path(row["uri"]).name for row in predictions.rejects.to_pylist()] == [
        "050.jpg",
        "095.jpg",
    ]
    assert not list(open_store(str(tmp_path / "out")).walk("attempts")), "attempt files are deleted"
    second = label(scans, tmp_path / "out", trained, executor, precision="float32")
    assert (second.units_run, second.skipped, second.rejected) == (0, 94, 2)


@pytest.mark.slow
def test_other_processes_decode_predictions_are_the_same(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    """As for a worker with a GPU; here the worker has one core, and preprocessing the other."""
    scans = flat_archive(tmp_path / "scans", 200)
    (scans / "bad.jpg").write_bytes(b"no picture")
    blocks, fused = str(tmp_path / "blocks"), str(tmp_path / "fused")
    executor = RayExecutor(None, workers=1, always_preprocess=True)
    summary = label(scans, blocks, trained, executor, precision="float32")
    assert (summary.labelled, summary.rejects_by_reason) == (200, {"unidentified": 1})
    label(scans, fused, trained, precision="float32")
    assert open_predictions(blocks).table == open_predictions(fused).table


@pytest.mark.slow
def test_picture_kills_preprocessing_it_is_a_reject(
    local_ray: None, trained: Trained, tmp_path: Path
) -> None:
    scans = flat_archive(tmp_path / "scans", 24)
    (scans / "005.jpg").write_bytes(picture(5) + KILLER)
    executor = DangerousExecutor(RayExecutor(None, workers=1, always_preprocess=True))
    summary = label(scans, tmp_path / "out", trained, executor)
    assert (summary.labelled, summary.rejects_by_reason) == (23, {"killed_worker": 1})


@pytest.mark.slow
def test_picture_hangs_its_worker_it_is_a_reject(
    killable_executor: Executor, trained: Trained, tmp_path: Path
) -> None:
    scans = flat_archive(tmp_path / "scans", 12)
    (scans / "005.jpg").write_bytes(picture(5) + STOPPER)
    summary = label(
        scans,
        tmp_path / "out",
        trained,
        DangerousExecutor(killable_executor),
        precision="float32",
        unit_timeout_s=2.0,
    )
    assert (summary.labelled, summary.rejects_by_reason) == (11, {"killed_worker": 1})


PICTURES = 2400


@dataclass(frozen=True)
class Undisturbed:
    """An archive, and the predictions of a labelling without any fault."""

    scans: Path
    table: pa.Table
    units: int


@pytest.fixture(scope="module")
def undisturbed(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    scans = many_pictures(folder / "scans", PICTURES)
    summary = label(scans, folder / "out", trained, precision="float32")
    assert summary.labelled == PICTURES
    return Undisturbed(scans, open_predictions(str(folder / "out")).table, summary.units_run)


def require_same(out: str, expected: Undisturbed) -> None:
    """Require every picture once with its prediction.

    A unit that is tried again is predicted picture by picture, which rounds differently.
    """
    table = open_predictions(out).table
    exact = ["uri", "etag", "sample_id", "label", "model_version"]
    assert table.select(exact) == expected.table.select(exact)
    np.testing.assert_allclose(
        table.column("score").to_numpy(), expected.table.column("score").to_numpy(), atol=1e-5
    )
    store = open_store(out)
    parts = pa.concat_tables(from_parquet(store.get(info.name)) for info in store.walk("parts"))
    assert sorted(parts.column("uri").to_pylist()) == table.column("uri").to_pylist(), (
        "a reader without the manifest sees each picture once"
    )


def chaos(
    victim: str, seed: int, expected: Undisturbed, out: str, folder: Path, trained: Trained
) -> None:
    """Run a job and kill some of its processes; require the result, and few repeated units.

    In float32: a unit that is tried again is predicted picture by picture, and bfloat16 would round
    otherwise than in a batch. Only units that were running may be repeated.
    """
    audit = folder / "audit"
    audit.mkdir()
    argv = [
        "tests.cluster.label_chaos",
        victim,
        str(seed),
        str(expected.scans),
        out,
        trained.champion,
        str(audit),
    ]
    command = [sys.executable, "-m", *argv]
    is_driver = victim in {"driver", "driver-of-processes"}
    if is_driver:
        command[3] = "none" if victim == "driver" else "none-of-processes"
        job = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not started_units(audit):
            assert job.poll() is None, "the job ended before it ran a unit"
            time.sleep(0.02)
        time.sleep(2.5 * random.Random(seed).random())
        assert job.poll() is None, "the job ended before it was killed"
        job.kill()
        job.wait()
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    require_same(out, expected)
    # Blocks of a preprocessing task that was killed are prepared again; its worker goes on.
    running = 2 if is_driver else {"preprocessing": 0}.get(victim, outcome["killed"])
    assert len(started_units(audit)) - expected.units <= running
    if not is_driver:
        assert outcome["killed"] >= 1, "the job ended before anything was killed"


@pytest.mark.slow
def test_workers_are_killed_predictions_are_the_same_and_little_is_repeated(
    undisturbed: Undisturbed, trained: Trained, tmp_path: Path
) -> None:
    chaos("actor", 0, undisturbed, str(tmp_path / "out"), tmp_path, trained)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize(
    "victim",
    ["actor", "preprocessing", "raylet", "driver", "process", "driver-of-processes"],
)
def test_processes_are_killed_predictions_are_the_same(
    undisturbed: Undisturbed,
    trained: Trained,
    location: str,
    tmp_path: Path,
    victim: str,
    seed: int,
) -> None:
    chaos(victim, seed, undisturbed, f"{location}/out", tmp_path, trained)


@pytest.mark.slow
def test_messages_are_lost_predictions_are_the_same(
    undisturbed: Undisturbed, trained: Trained, tmp_path: Path
) -> None:
    argv = [
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
    done = run_afinar(*argv, cwd=tmp_path, env={"RAY_testing_rpc_failure": RPC_CHAOS})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["labelled"] == PICTURES
    require_same(str(tmp_path / "out"), undisturbed)
