"""Jobs as commands that start Ray: end to end, killed and run again, on S3, submitted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import s3fs

from afinar import open_dataset, open_model, open_predictions
from afinar.nightly.records import read_nights
from afinar.storage.markers import committed_units
from afinar.storage.open import open_store
from tests.conftest import SCRIPTS, Trained, make_archive, many_pictures, run_afinar
from tests.servers import free_port

PICTURES, UNITS = 960, 20
TRAIN = (
    "--backbone small_cnn --weights none --regime scratch --input-size 64 --batch-size 8".split()
)


def summary_of(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run a job with --json and two workers, and return its JSON object."""
    done = run_afinar(*arguments, "--json", "--workers", "2", cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def test_three_jobs_run_in_a_folder_with_modules_of_the_same_names(tmp_path: Path) -> None:
    """The working folder has the user's pipeline.py and jobs.py, which must not be imported."""
    for name in ("pipeline.py", "jobs.py"):
        (tmp_path / name).write_text("raise RuntimeError('the user\\'s own module was imported')\n")
    make_archive(tmp_path / "pictures", 40)
    (tmp_path / "pictures" / "moss" / "broken.jpg").write_bytes(b"no picture")

    ingested = summary_of("ingest", "pictures", "dataset", "--size", "64", cwd=tmp_path)
    assert ingested["listed"] == 81 == ingested["added"] + ingested["rejects"]
    trained = summary_of("train", "dataset", "models", *TRAIN, "--epochs", "6", cwd=tmp_path)
    assert trained["metrics"]["test"]["top1"] >= 0.9
    assert trained["params_total"] == trained["params_trainable"] > 0
    label = ["label", "pictures", "predictions", "--model", "models@champion"]
    labelled = summary_of(*label, cwd=tmp_path)
    assert (
        labelled["listed"]
        == 81
        == labelled["labelled"] + labelled["rejected"] + labelled["skipped"]
    )
    assert labelled["rejected"] == 1
    rows = open_predictions(str(tmp_path / "predictions")).table.to_pylist()
    right = sum(row["label"] == Path(row["uri"]).parent.name for row in rows)
    assert right >= 0.9 * len(rows)

    again = summary_of(*label, cwd=tmp_path)
    assert (again["labelled"], again["skipped"], again["units_run"]) == (0, 80, 0)
    again = summary_of("ingest", "pictures", "dataset", "--size", "64", cwd=tmp_path)
    assert (again["unchanged"], again["units_run"]) == (80, 0)
    assert {path.name for path in (tmp_path / "models").iterdir()} >= {
        "weights",
        "golden",
        "versions",
        "aliases",
        "runs",
    }


def kill_midway(arguments: list[str], store: str, cwd: Path) -> int:
    """Start a job and SIGKILL its driver once three units are committed; return how many are."""
    driver = subprocess.Popen(
        [SCRIPTS / "afinar", *arguments, "--workers", "2"],
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while driver.poll() is None and time.monotonic() < deadline:
        if len(committed_units(open_store(store))) >= 3:
            break
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the job must still be running when it is killed"
    return len(committed_units(open_store(store)))


def bytes_by_name(store: str, folder: str) -> dict[str, bytes]:
    opened = open_store(store)
    return {info.name: opened.get(info.name) for info in opened.walk(folder)}


def test_ingest_with_killed_driver_is_completed_by_the_same_command(tmp_path: Path) -> None:
    many_pictures(tmp_path / "pictures", PICTURES)
    command = ["ingest", "pictures", "dataset", "--size", "32"]
    dataset = str(tmp_path / "dataset")
    before = kill_midway(command, dataset, tmp_path)
    assert not (tmp_path / "dataset" / "manifests").exists()
    shards = bytes_by_name(dataset, "shards")

    done = summary_of(*command, cwd=tmp_path)
    assert done["listed"] == done["samples"] == done["added"] == PICTURES
    assert 0 < done["units_run"] <= UNITS - before
    uris = open_dataset(dataset).index.column("uri").to_pylist()
    assert uris == sorted(str(path) for path in (tmp_path / "pictures").rglob("*.jpg")), (
        "no loss, no duplicate"
    )
    after = bytes_by_name(dataset, "shards")
    assert {name: after[name] for name in shards} == shards, "no published object changed"

    summary_of("ingest", "pictures", "undisturbed", "--size", "32", cwd=tmp_path)
    assert open_dataset(dataset).index == open_dataset(str(tmp_path / "undisturbed")).index
    assert after == bytes_by_name(str(tmp_path / "undisturbed"), "shards")


@pytest.mark.slow
def test_labelling_with_killed_driver_is_completed_by_the_same_command(
    tmp_path: Path, trained: Trained
) -> None:
    many_pictures(tmp_path / "pictures", 1600)
    command = ["label", "pictures", "out", "--model", trained.champion]
    out = str(tmp_path / "out")
    before = kill_midway(command, out, tmp_path)
    done = summary_of(*command, cwd=tmp_path)
    assert done["listed"] == done["labelled"] == 1600
    assert 0 < done["units_run"] <= 32 - before
    uris = open_predictions(out).table.column("uri").to_pylist()
    assert uris == sorted(str(path) for path in (tmp_path / "pictures").rglob("*.jpg")), (
        "no loss, no duplicate"
    )

    import pyarrow.dataset

    plain = pyarrow.dataset.dataset(
        f"{out}/parts", format="parquet", partitioning="hive"
    ).to_table()
    assert sorted(plain.column("uri").to_pylist()) == uris


def relative(rows: list[dict[str, Any]], root: str, keys: tuple[str, ...]) -> list[tuple[Any, ...]]:
    """Return these columns of rows, with each uri relative to `root`."""
    return sorted((row["uri"].removeprefix(root), *(row[key] for key in keys)) for row in rows)


def test_jobs_on_s3_write_what_they_write_in_a_folder(
    tmp_path: Path, trained: Trained, bucket: str
) -> None:
    make_archive(tmp_path / "pictures", 60)
    (tmp_path / "pictures" / "rust" / "empty.jpg").write_bytes(b"")
    store = s3fs.S3FileSystem()
    store.put(str(tmp_path / "pictures"), f"{bucket}/pictures", recursive=True)
    store.put(trained.models, f"{bucket}/models", recursive=True)

    here, there = str(tmp_path / "pictures"), f"{bucket}/pictures"
    folder = summary_of("ingest", here, "dataset", "--size", "64", cwd=tmp_path)
    remote = summary_of("ingest", there, f"{bucket}/dataset", "--size", "64", cwd=tmp_path)
    for key in ("listed", "samples", "rejects_by_reason", "added", "classes", "splits"):
        assert remote[key] == folder[key], key
    local_dataset = open_dataset(str(tmp_path / "dataset"))
    s3_dataset = open_dataset(f"{bucket}/dataset", cache=tmp_path / "cache")
    keys = ("sample_id", "label", "split")
    local_rows, s3_rows = local_dataset.index.to_pylist(), s3_dataset.index.to_pylist()
    assert relative(s3_rows, there, keys) == relative(local_rows, here, keys)
    assert (s3_dataset.read(range(120)) == local_dataset.read(range(120))).all()
    again = summary_of("ingest", there, f"{bucket}/dataset", "--size", "64", cwd=tmp_path)
    assert again["units_run"] == 0

    summary_of("label", here, "out", "--model", trained.champion, cwd=tmp_path)
    done = summary_of(
        "label", there, f"{bucket}/out", "--model", f"{bucket}/models@champion", cwd=tmp_path
    )
    assert (done["listed"], done["labelled"], done["rejected"], done["skipped"]) == (121, 120, 1, 0)
    columns = ("sample_id", "label", "score", "model_version")
    local_rows, s3_rows = (
        open_predictions(out).table.to_pylist() for out in (str(tmp_path / "out"), f"{bucket}/out")
    )
    assert relative(s3_rows, there, columns) == relative(local_rows, here, columns)

    places = [f"{bucket}/dataset", f"{bucket}/fresh"]
    model = summary_of("train", *places, *TRAIN, "--epochs", "4", cwd=tmp_path)
    assert open_model(model["model"]).classes == ["moss", "rust"]


class Cluster(NamedTuple):
    """The address of a Ray's Jobs API."""

    address: str

    def submit(self, *job: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        argv = ["submit", "--address", self.address, "--", *job]
        return run_afinar(*argv, cwd=cwd, env={"RAY_AUTH_MODE": "disabled"})


@pytest.fixture(scope="module")
def cluster(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a Ray head with its command, on loopback; its jobs find the `afinar` script.

    It starts after the S3 server: its processes have the credentials of the server.
    """
    port, dashboard = free_port(), free_port()
    temp = f"/tmp/afinar-{os.getpid()}"  # the path of a socket has at most 107 bytes
    folder = tmp_path_factory.mktemp("cluster")
    environment = {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    command = [
        str(SCRIPTS / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1",
        f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1",
        "--num-cpus=2", f"--temp-dir={temp}",
        # The Ray that other tests share has the default port.
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    started = Cluster(f"http://127.0.0.1:{dashboard}")
    wait_for_jobs_api(started, folder)
    yield started
    processes = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=30)
    shutil.rmtree(temp, ignore_errors=True)


def wait_for_jobs_api(cluster: Cluster, folder: Path) -> None:
    for _ in range(60):
        done = cluster.submit("ingest", "/nowhere", "/nowhere-either", cwd=folder)
        if "no Ray Jobs API answers" not in done.stderr:
            assert done.returncode == 2, "only the cluster can see that the request is wrong"
            return
        time.sleep(1)
    raise AssertionError(done.stderr)


def test_submitted_job_returns_the_exit_code_of_the_job(tmp_path: Path, cluster: Cluster) -> None:
    """Requests that are wrong end with 2, as `wait_for_jobs_api` sees."""
    make_archive(tmp_path / "pictures", 20)
    submit = partial(cluster.submit, cwd=tmp_path)
    root = str(tmp_path)
    (tmp_path / "small.toml").write_text("size = 64\n")
    done = submit("ingest", f"{root}/pictures", f"{root}/dataset", "--recipe", f"{root}/small.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "40 added" in done.stderr, "the output of the job is printed"
    assert open_dataset(f"{root}/dataset").view.size == 64

    for number in range(9):
        (tmp_path / "pictures" / "moss" / f"bad{number}.jpg").write_bytes(b"bad")
    done = submit("ingest", f"{root}/pictures", f"{root}/dataset", "--size", "64")
    assert done.returncode == 1, "the job fell short of its reject budget"
    assert "--max-reject-rate" in done.stderr


def test_submitted_night_runs_on_the_cluster_and_against_s3(
    tmp_path: Path, bucket: str, cluster: Cluster
) -> None:
    make_archive(tmp_path / "uploads", 30)
    make_archive(tmp_path / "archive", 3)
    store = s3fs.S3FileSystem()
    for name in ("uploads", "archive"):
        store.put(str(tmp_path / name), f"{bucket}/{name}", recursive=True)
    places = {name: f"{bucket}/{name}" for name in ("dataset", "models", "nights", "archive")}
    places |= {"source": f"{bucket}/uploads", "predictions": f"{bucket}/labels"}
    options = {"backbone": "small_cnn", "weights": "none", "regime": "scratch", "size": 64}
    options |= {"split": "0.5,0.2,0.3", "training": "training.toml", "workers": 1, "json": True}
    lines = [f"{key} = {json.dumps(value)}" for key, value in (places | options).items()]
    (tmp_path / "nightly.toml").write_text("\n".join(lines))
    (tmp_path / "training.toml").write_text("input_size = 64\nepochs = 6\nbatch_size = 8\n")

    submit = partial(cluster.submit, cwd=tmp_path)
    done = submit("nightly", "--recipe", "nightly.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"outcome": "promoted"' in done.stdout + done.stderr
    assert open_model(f"{bucket}/models").classes == ["moss", "rust"]
    assert len(open_predictions(f"{bucket}/labels").table) == 6
    (record,) = read_nights(open_store(f"{bucket}/nights"))
    assert b"promoted" in open_store(f"{bucket}/nights").get(f"{record.night}/report.html")

    done = submit("nightly", "--recipe=nightly.toml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"outcome": "no change"' in done.stdout + done.stderr
