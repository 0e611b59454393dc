"""A training that is cut off goes on from its newest checkpoint, and ends as if nothing had been."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from afinar.config.train import TrainConfig
from afinar.errors import IntegrityError, RequestError, ShortfallError
from afinar.storage.open import open_store
from afinar.training.checkpoint import TrainState
from afinar.training.distributed import Group
from afinar.training.publish import TrainOutcome, finish, publish
from afinar.training.sample_log import SampleLog
from afinar.training.sampler import Rows
from afinar.training.task import plan_training
from afinar.training.worker import train

from tests.conftest import TINTS, Trained, jpeg, make_archive
from tests.training.runs import config, run, run_on, steps_of


class CutOffError(Exception):
    """What stands for a lost machine."""


def cut_off_at(step: int, configuration: TrainConfig, patch: pytest.MonkeyPatch) -> None:
    """Train until `step` has been taken, and no further."""
    write = SampleLog.write

    def deadly(self: SampleLog, cursor: TrainState, rows: Rows) -> None:
        write(self, cursor, rows)
        if cursor.step == step:
            raise CutOffError

    with patch.context() as inner:
        inner.setattr(SampleLog, "write", deadly)
        with pytest.raises(CutOffError):
            run(configuration)


def without_times(outcome: TrainOutcome) -> Any:
    record = dataclasses.asdict(outcome)
    for row in record["history"]:
        del row["seconds"], row["ledger"]
    return record


OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "optimizer": "sgd",
        "ema": 0.9,
        "schedule": "linear",
        "augment": "flip,rotate:20,brightness:0.2",
        "precision": "bfloat16",
    },
    {"optimizer": "rmsprop", "clip_norm": 1.0, "label_smoothing": 0.1, "class_weights": "balanced"},
    {
        "optimizer": "adam",
        "backbone": "efficientnet_lite0",
        "regime": "last:2",
        "weights": "imagenet",
        "epochs": 1,
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=["adamw", "sgd+ema", "rmsprop", "last two stages"])
def test_a_training_cut_off_in_mid_epoch_ends_bit_for_bit_as_the_undisturbed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Dropout, averaged weights, momentum and BatchNorm's statistics included."""
    plain = config(
        trained,
        tmp_path / "calm",
        checkpoint_steps=3,
        audit=str(tmp_path / "calm-audit"),
        **options,
    )
    undisturbed = run(plain)
    disturbed = dataclasses.replace(
        plain, models=str(tmp_path / "cut"), audit=str(tmp_path / "cut-audit")
    )
    cut_off_at(5, disturbed, monkeypatch)
    assert without_times(run(disturbed)) == without_times(undisturbed)

    calm, cut = steps_of(tmp_path / "calm-audit"), steps_of(tmp_path / "cut-audit")
    assert {step: sorted(set(rows)) for step, rows in cut.items()} == calm, (
        "the same samples in the same steps"
    )
    replayed = [step for step in cut if len(cut[step]) > len(calm[step])]
    assert replayed == [4, 5], "what came after the checkpoint at step 3, and nothing else"


def test_each_epoch_has_every_sample_once(trained: Trained, tmp_path: Path) -> None:
    run(config(trained, tmp_path / "models", epochs=2, audit=str(tmp_path / "audit")))
    steps = steps_of(tmp_path / "audit")
    half = len(steps) // 2
    first, second = (
        [row for step in part for row in steps[step]]
        for part in (list(steps)[:half], list(steps)[half:])
    )
    assert len(set(first)) == len(first)
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_training_goes_on_with_another_number_of_workers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dropout or BatchNorm before this cut, so that the arithmetic is the same but for its order."""
    plain = config(trained, tmp_path / "calm", backbone="squeezenet1_1", cut="features.5", epochs=2, batch_size=9,
                   checkpoint_steps=2, audit=str(tmp_path / "calm-audit"))  # fmt: skip
    undisturbed = run(plain)
    disturbed = dataclasses.replace(
        plain, models=str(tmp_path / "cut"), audit=str(tmp_path / "cut-audit")
    )
    cut_off_at(5, disturbed, monkeypatch)
    outcome = run_on(3, disturbed, tmp_path / "cut")
    for row, other in zip(undisturbed.history, outcome.history, strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
        assert row["val"]["loss"] == pytest.approx(other["val"]["loss"], rel=1e-4)
    calm, cut = steps_of(tmp_path / "calm-audit"), steps_of(tmp_path / "cut-audit")
    assert {step: sorted(set(rows)) for step, rows in cut.items()} == calm


def test_a_run_that_ended_without_being_published_is_published_once(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=1)
    task = plan_training(configuration, "first")
    outcome = train(task, Group())
    again = plan_training(configuration, "second")
    assert (again.run, again.resumed) == ("first", True)
    assert train(again, Group()) == outcome, "nothing is trained again"
    version = publish(again, outcome, 1.0)
    assert publish(again, outcome, 1.0) == version
    finish(again, outcome)
    assert plan_training(configuration, "third").run == "third", "what is published is finished"


def test_checkpoints_leave_the_best_epochs_behind_and_nothing_else(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=4, keep_best=2, checkpoint_steps=2)
    task = plan_training(configuration, "run")
    outcome = train(task, Group())
    finish(task, outcome)
    finish(task, outcome)  # as when a job was killed in the middle of it
    left = {
        f"runs/run/checkpoints/{path.name}"
        for path in (tmp_path / "runs" / "run" / "checkpoints").iterdir()
    }
    ranked = sorted(outcome.history, key=lambda row: (-row["val"]["top1"], row["val"]["loss"]))
    assert [one["epoch"] for one in outcome.best] == [row["epoch"] for row in ranked[:2]]
    assert left == {one["path"] for one in outcome.best}
    assert not list((tmp_path / "unfinished").iterdir())


def test_the_best_epoch_is_what_is_evaluated_and_patience_ends_a_training(
    trained: Trained, tmp_path: Path
) -> None:
    outcome = run(config(trained, tmp_path, epochs=30, patience=2, learning_rate=3e-3))
    ranked = sorted(outcome.history, key=lambda row: (-row["val"]["top1"], row["val"]["loss"]))
    assert len(outcome.history) < 30
    assert len(outcome.history) - ranked[0]["epoch"] == 2
    assert outcome.metrics["val"]["loss"] == pytest.approx(ranked[0]["val"]["loss"], rel=1e-5)


def test_a_checkpoint_of_another_training_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a dataset was ingested anew under the old name, or a folder was copied over another."""
    configuration = config(trained, tmp_path, checkpoint_steps=2)
    cut_off_at(3, configuration, monkeypatch)
    (path,) = (tmp_path / "runs" / "run" / "checkpoints").glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    with pytest.raises(ShortfallError, match="another training"):
        run(configuration)
    assert not (tmp_path / "versions").exists()


def test_a_new_version_of_the_dataset_is_a_new_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from afinar.config.ingest import IngestConfig
    from afinar.ingest.driver import Ingest
    from afinar.units.executor import InlineExecutor

    pictures = make_archive(tmp_path / "pictures", 30)
    ingest = IngestConfig(source=str(pictures), dataset=str(tmp_path / "dataset"), size=64)
    Ingest(ingest, InlineExecutor()).run()
    mine = Trained(pictures, ingest.dataset, str(tmp_path / "models"))
    configuration = config(mine, tmp_path / "models", checkpoint_steps=2)
    cut_off_at(3, configuration, monkeypatch)
    (pictures / "moss" / "000.jpg").unlink()
    Ingest(ingest, InlineExecutor()).run()
    task = plan_training(configuration, "another")
    assert (task.run, task.resumed, task.dataset_version) == ("another", False, 2)
    assert "run run, on version 1 of the dataset, was interrupted" in capfd.readouterr().err
    assert [row["epoch"] for row in train(task, Group()).history] == [1, 2, 3], "from its beginning"


def test_a_damaged_checkpoint_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = config(trained, tmp_path, checkpoint_steps=2)
    cut_off_at(3, configuration, monkeypatch)
    for path in (tmp_path / "runs" / "run" / "checkpoints").glob("*.safetensors"):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    with pytest.raises(IntegrityError, match="not what was committed"):
        run(configuration)


def test_a_damaged_shard_ends_the_training_and_publishes_nothing(tmp_path: Path) -> None:
    from afinar.config.ingest import IngestConfig
    from afinar.ingest.driver import Ingest
    from afinar.units.executor import InlineExecutor

    pictures = make_archive(tmp_path / "pictures", 30)
    dataset = str(tmp_path / "dataset")
    Ingest(IngestConfig(source=str(pictures), dataset=dataset, size=64), InlineExecutor()).run()
    store = open_store(dataset)
    (shard, *_) = store.walk("shards")
    path = Path(shard.uri)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="not what was committed"):
        run(config(Trained(pictures, dataset, ""), tmp_path / "models"))
    assert not (tmp_path / "models" / "versions").exists()


def test_a_class_without_training_samples_is_refused(tmp_path: Path) -> None:
    from afinar.config.ingest import IngestConfig
    from afinar.ingest.driver import Ingest
    from afinar.units.executor import InlineExecutor

    folders = (
        "train/moss",
        "train/rust",
        "validation/moss",
        "validation/rust",
        "test/moss",
        "test/slate",
    )
    for number, folder in enumerate(folders):
        (tmp_path / "pictures" / folder).mkdir(parents=True)
        for position in range(6):
            picture = jpeg(100 * number + position, tint=TINTS[Path(folder).name])
            (tmp_path / "pictures" / folder / f"{position}.jpg").write_bytes(picture)
    dataset = str(tmp_path / "dataset")
    Ingest(
        IngestConfig(source=str(tmp_path / "pictures"), dataset=dataset, size=64, split="folder"),
        InlineExecutor(),
    ).run()
    with pytest.raises(RequestError, match="no training sample of slate"):
        run(config(Trained(tmp_path, dataset, ""), tmp_path / "models"))
    assert not (tmp_path / "models" / "versions").exists()
