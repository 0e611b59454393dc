"""Driver: what it publishes, when it calls its hook, and how it continues after being killed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from afinar import open_dataset
from afinar.config.forget import ForgetConfig
from afinar.errors import (
    DivergedError,
    NoSpaceError,
    NotFoundError,
    RequestError,
    ShortfallError,
    StorageError,
)
from afinar.ingestion.forget import run_forget
from afinar.storage.open import open_store
from afinar.training import worker as module
from afinar.training.checkpoint import Checkpoints, TrainState
from afinar.training.distributed import Group
from afinar.training.driver import (
    TrainOutcome,
    discard_trial,
    publish_trial,
    run_training,
    run_trial,
)
from afinar.training.hooks import Metrics, TrainHooks
from afinar.training.publish import TrainResult, read_result, write_result
from afinar.training.task import TrainTask, plan_training
from afinar.training.worker import run_worker, train
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained
from tests.training.runs import config, interrupt_after


class Launches:
    """Launcher that trains in this process and counts its calls."""

    def __init__(self, hooks: TrainHooks | None = None) -> None:
        self.count, self.hooks = 0, hooks or TrainHooks()

    def __call__(self, task: TrainTask) -> None:
        self.count += 1
        run_worker(task, Group(), self.hooks)


class KilledError(Exception):
    """Stands for the death of the driver."""


def test_run_training_publishes_a_version_and_returns_its_outcome(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=1)
    markers: list[int] = []

    def on_published(outcome: TrainOutcome) -> None:
        assert (tmp_path / "versions" / "00000001.json").exists(), "after publishing"
        markers.append(len(list((tmp_path / "unfinished").iterdir())))

    outcome = run_training(configuration, Launches(), "first", on_published)
    assert markers == [1], "before the cleanup"
    assert not list((tmp_path / "unfinished").iterdir())
    assert (outcome.version.version, outcome.run) == (1, "runs/first")
    assert outcome.models == str(tmp_path)
    assert outcome.version.metrics["val"] == outcome.result.metrics["val"]
    assert outcome.version.lineage["run"] == outcome.run
    assert outcome.seconds > 0


def test_run_training_without_a_name_names_the_run_itself(trained: Trained, tmp_path: Path) -> None:
    outcome = run_training(config(trained, tmp_path, epochs=1), Launches())
    assert (tmp_path / outcome.run / "outcome.json").exists()


def test_driver_killed_before_publishing_publishes_without_training_again(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=1)
    task = plan_training(configuration, "first")
    result = train(task, Group())
    again = plan_training(configuration, "second")
    assert (again.run, again.resumed) == ("first", True)
    assert train(again, Group()) == result, "a worker trains nothing again"

    launches = Launches()
    outcome = run_training(configuration, launches, "second")
    assert launches.count == 0
    assert (outcome.run, outcome.result) == ("runs/first", result)
    assert plan_training(configuration, "third").run == "third", "a published run is not resumed"


def test_driver_killed_in_its_hook_calls_it_again_and_publishes_once(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=1)

    def fail(outcome: TrainOutcome) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        run_training(configuration, Launches(), "first", fail)
    outcomes: list[TrainOutcome] = []
    launches = Launches()
    outcome = run_training(configuration, launches, "second", outcomes.append)
    assert outcomes == [outcome]
    assert (launches.count, outcome.run, outcome.version.version) == (0, "runs/first", 1)
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["00000001.json"]


def test_workers_without_a_result_raise_and_publish_nothing(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=1)
    with pytest.raises(ShortfallError, match="run first ended without a result"):
        run_training(configuration, lambda task: None, "first")
    assert not (tmp_path / "versions").exists()
    assert read_result(plan_training(configuration, "second")) is None


def left_behind(models: Path) -> list[str]:
    """Return the files below a folder of models, hidden ones too."""
    return [str(path.relative_to(models)) for path in models.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "error", [RequestError("4 workers"), NoSpaceError("full"), DivergedError("not finite")]
)
def test_request_that_cannot_succeed_leaves_nothing(
    error: Exception, trained: Trained, tmp_path: Path
) -> None:
    def refuse(task: TrainTask) -> None:
        open_store(task.config.models).put_if_absent(f"runs/{task.run}/config.json", b"{}")
        raise error

    configuration = config(trained, tmp_path, epochs=1)
    with pytest.raises(type(error)):
        run_training(configuration, refuse, "first")
    assert left_behind(tmp_path) == []
    assert not plan_training(configuration, "second").resumed


@pytest.mark.parametrize("error", [StorageError("unreachable"), KilledError()])
def test_training_that_another_attempt_may_complete_stays_resumable(
    error: Exception, trained: Trained, tmp_path: Path
) -> None:
    def fail(task: TrainTask) -> None:
        raise error

    configuration = config(trained, tmp_path, epochs=1)
    with pytest.raises(type(error)):
        run_training(configuration, fail, "first")
    task = plan_training(configuration, "second")
    assert (task.run, task.resumed) == ("first", True)


def test_memory_that_runs_out_after_the_solved_head_leaves_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint without a step is not worth keeping; later ones are, for --accumulate."""
    configuration = config(trained, tmp_path, checkpoint_steps=2)

    def run_out(task: TrainTask) -> None:
        checkpoints = Checkpoints(open_store(str(tmp_path)), task.run, task.fingerprint)
        checkpoints.save(TrainState(), checkpoints.put({}), {})
        raise RequestError("out of memory: give --accumulate 2")

    with pytest.raises(RequestError):
        run_training(configuration, run_out, "first")
    assert left_behind(tmp_path) == []

    def run_out_later(task: TrainTask) -> None:
        interrupt_after(3, configuration, monkeypatch)
        raise RequestError("out of memory: give --accumulate 2")

    with pytest.raises(RequestError):
        run_training(configuration, run_out_later, "run")
    assert plan_training(configuration, "second").resumed


def test_trial_uses_no_test_split_and_is_published_later(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = config(trained, tmp_path / "trial", epochs=2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_test", lambda *_: pytest.fail("looks at the test split"))
        trial = run_trial(configuration, Launches(), "first")
        again = Launches()
        assert run_trial(configuration, again, "second").result == trial.result
        assert again.count == 0, "a complete trial is not trained again"
    assert list(trial.result.metrics) == ["val"]
    assert trial.result.epochs == 2
    assert not list((tmp_path / "trial").glob("versions/*"))
    assert not list((tmp_path / "trial").glob("golden/*"))

    published = publish_trial(trial, Launches())
    plain = run_training(config(trained, tmp_path / "plain", epochs=2), Launches(), "first")
    assert published.run == "runs/first"
    assert published.result.weights == plain.result.weights
    assert published.result.metrics == plain.result.metrics
    assert published.seconds > trial.seconds
    assert not list((tmp_path / "trial").glob("unfinished/*"))
    assert not (tmp_path / "trial" / "runs" / "first" / "trial.json").exists()


def test_trial_that_was_stopped_early_is_published_as_it_was(
    trained: Trained, tmp_path: Path
) -> None:
    def stop_after_one(metrics: Metrics) -> bool:
        return True

    launch = Launches(TrainHooks(on_epoch_end=stop_after_one))
    trial = run_trial(config(trained, tmp_path, epochs=3), launch, "first")
    published = publish_trial(trial, Launches())
    assert (trial.result.epochs, published.result.epochs) == (1, 1)
    assert published.result.metrics["val"] == trial.result.metrics["val"]


def test_discarded_trial_leaves_nothing(trained: Trained, tmp_path: Path) -> None:
    discard_trial(run_trial(config(trained, tmp_path, epochs=1), Launches()))
    assert left_behind(tmp_path) == []


def test_wrong_request_of_a_resumed_run_keeps_its_checkpoints(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = config(trained, tmp_path, checkpoint_steps=2)
    interrupt_after(3, configuration, monkeypatch)
    before = left_behind(tmp_path)

    def refuse(task: TrainTask) -> None:
        raise RequestError("--workers 64")

    with pytest.raises(RequestError):
        run_training(configuration, refuse, "again")
    assert left_behind(tmp_path) == before


def test_training_started_twice_at_once_is_published_once(trained: Trained, tmp_path: Path) -> None:
    configuration = config(trained, tmp_path, epochs=1)
    inner: list[TrainOutcome] = []

    def train_twice(task: TrainTask) -> None:
        """Train while another job starts the same training, completes and publishes it."""
        inner.append(run_training(configuration, Launches(), "second"))
        raise NotFoundError("a checkpoint that the other job deleted")

    outcome = run_training(configuration, train_twice, "first")
    assert outcome.version == inner[0].version
    assert outcome.run == inner[0].run == "runs/first"
    assert [path.name for path in (tmp_path / "versions").iterdir()] == ["00000001.json"]


def test_wrong_request_raises_before_launching(trained: Trained, tmp_path: Path) -> None:
    configuration = dataclasses.replace(config(trained, tmp_path), cut="nowhere")
    launches = Launches()
    with pytest.raises(RequestError):
        run_training(configuration, launches)
    assert launches.count == 0


def forget_first_test_picture(dataset: str) -> bytes:
    """Erase a picture of the test split from a dataset and return its file."""
    rows = open_dataset(dataset).index.to_pylist()
    uri = next(row["uri"] for row in rows if row["split"] == "test")
    run_forget(ForgetConfig(path=dataset, uris=(uri,)), InlineExecutor())
    return Path(uri).read_bytes()


@pytest.mark.parametrize("moment", ["training", "publishing"])
def test_picture_is_erased_while_a_training_runs_nothing_is_published(
    trained: Trained, tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = str(tmp_path / "dataset")
    shutil.copytree(trained.dataset, dataset)
    models = tmp_path / "models"
    configuration = dataclasses.replace(config(trained, models, epochs=1), dataset=dataset)

    if moment == "training":

        def write_later(*arguments: Any) -> TrainResult:
            forget_first_test_picture(dataset)
            return write_result(*arguments)

        monkeypatch.setattr(module, "write_result", write_later)
        launch: Any = Launches()
    else:

        def launch(task: TrainTask) -> None:
            train(task, Group())
            forget_first_test_picture(dataset)

    with pytest.raises(ShortfallError, match="pictures were erased from it"):
        run_training(configuration, launch, "first")
    assert not list(models.glob("versions/*"))
    assert moment == "publishing" or not list(models.glob("golden/*"))

    monkeypatch.undo()
    outcome = run_training(configuration, Launches(), "second")
    assert outcome.version.lineage["dataset"]["version"] == 2
