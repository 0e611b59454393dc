"""Fixtures and helpers of all tests: pictures, a trained model, a local Ray, an S3 server."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from afinar.logs import configure_logging
from afinar.units.executor import Executor
from tests.servers import seaweedfs

# The time that a property takes is no reason to fail.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

configure_logging()  # as the command line does; tests read what it writes to stderr

# Matrix products use one thread: several wait for each other in a busy loop, and two tests share
# the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SCRIPTS = Path(sys.executable).parent

# Ray workers import the tests' own work functions.
_ROOT = str(Path(__file__).resolve().parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in what a test printed: such text cannot be sent to pytest-xdist."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def jpeg(
    seed: int, size: tuple[int, int] = (80, 60), tint: tuple[int, int, int] = (128, 128, 128)
) -> bytes:
    """Return a JPEG of noise around a tint; each seed gives another file."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-40, 40, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(np.array(tint) + noise, 0, 255).astype(np.uint8))
    sink = io.BytesIO()
    image.save(sink, format="JPEG", quality=90)
    return sink.getvalue()


TINTS = {"moss": (60, 140, 60), "rust": (170, 80, 50), "slate": (90, 100, 140)}


def make_archive(folder: Path, per_class: int, classes: tuple[str, ...] = ("moss", "rust")) -> Path:
    """Write a folder of JPEGs for each class, which differ in tint, and return `folder`."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for position in range(per_class):
            seed = 1000 * number + position
            (folder / name / f"{position:03d}.jpg").write_bytes(jpeg(seed, tint=TINTS[name]))
    return folder


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Return a folder of 24 pictures in two classes."""
    return make_archive(tmp_path / "pictures", 12)


def many_pictures(folder: Path, count: int) -> Path:
    """Write `count` large pictures in two classes, and return `folder`.

    The pictures of a class have the same pixels and differ in a number after the end marker: they
    are cheap to make and take long to decode.
    """
    base = {
        name: jpeg(number, (1600, 1200), TINTS[name])
        for number, name in enumerate(("moss", "rust"))
    }
    for name, data in base.items():
        (folder / name).mkdir(parents=True)
        for number in range(count // 2):
            (folder / name / f"{number:04d}.jpg").write_bytes(data + number.to_bytes(4, "big"))
    return folder


@dataclass(frozen=True)
class Trained:
    """A dataset of 80 pictures and a model that was trained on it without Ray."""

    pictures: Path
    dataset: str
    models: str

    @property
    def champion(self) -> str:
        return f"{self.models}@champion"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a small network that can tell its two classes apart."""
    from afinar.config.ingest import IngestConfig
    from afinar.config.train import TrainConfig
    from afinar.ingestion.driver import run_ingest
    from afinar.training.distributed import Group
    from afinar.training.publish import publish
    from afinar.training.task import plan_training
    from afinar.training.worker import train
    from afinar.units.executor import InlineExecutor

    folder = tmp_path_factory.mktemp("trained")
    pictures = make_archive(folder / "pictures", 40)
    dataset, models = str(folder / "dataset"), str(folder / "models")
    run_ingest(IngestConfig(source=str(pictures), dataset=dataset, size=64), InlineExecutor())
    config = TrainConfig(
        dataset=dataset, models=models, backbone="small_cnn", regime="scratch", weights="none",
        input_size=64, epochs=6, batch_size=8,
    )  # fmt: skip
    task = plan_training(config, "run")
    publish(task, train(task, Group()), 1.0)
    return Trained(pictures, dataset, models)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """Start a Ray of two cores for all tests that run jobs in this process."""
    from afinar.execution.session import ray_session

    with ray_session("local", 2, dashboard=True):
        yield


@pytest.fixture(params=["ray", "processes"])
def killable_executor(request: pytest.FixtureRequest) -> Executor:
    """Return an executor on the tests' Ray, and in a second run of the test one without Ray."""
    from afinar.execution.executor import LocalExecutor, RayExecutor

    if request.param == "processes":
        return LocalExecutor(2)
    request.getfixturevalue("local_ray")
    return RayExecutor(None)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a SeaweedFS on loopback and set its credentials; yield its endpoint."""
    with (
        seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server.endpoint


@pytest.fixture(scope="session")
def shared_bucket(s3_server: str) -> str:
    """Return the one bucket of the session: SeaweedFS takes a volume or more of disk for each."""
    import s3fs

    s3fs.S3FileSystem().mkdir("tests")
    return "s3://tests"


@pytest.fixture
def bucket(shared_bucket: str, request: pytest.FixtureRequest) -> str:
    """Return an s3:// prefix that no other test uses."""
    return f"{shared_bucket}/{abs(hash(request.node.nodeid)) % 10**12}"


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a folder, and in a second run of the test an s3:// prefix."""
    if request.param == "folder":
        return str(tmp_path / "store")
    prefix: str = request.getfixturevalue("bucket")
    return f"{prefix}/store"


def heed_interrupts() -> None:
    """Let SIGINT interrupt a process that is about to start, also if the tests' shell ignores it.

    A shell without job control starts what it runs in the background so.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_afinar(
    *arguments: str, cwd: Path, env: dict[str, str] | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the console script in another process, as a user does."""
    return subprocess.run(
        [str(SCRIPTS / "afinar"), *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
