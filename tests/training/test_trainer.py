"""Interrupted trainings resume from their newest checkpoint and end like uninterrupted ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from afinar.config.train import SelectBy, TrainConfig
from afinar.errors import IntegrityError, ShortfallError
from afinar.storage.open import open_store
from afinar.training.checkpoint import RankedEpoch, rank_epochs
from afinar.training.distributed import Group
from afinar.training.publish import TrainResult, cleanup_after_publish
from afinar.training.task import plan_training
from afinar.training.worker import train
from tests.conftest import Trained, make_archive
from tests.training.runs import config, interrupt_after, rows_by_step, run, run_on


def without_times(result: TrainResult) -> Any:
    record = dataclasses.asdict(result)
    for row in record["history"]:
        del row["seconds"], row["ledger"]
    return record


def interrupt_copy(
    configuration: TrainConfig, folder: Path, patch: pytest.MonkeyPatch
) -> TrainConfig:
    """Interrupt the same training after step 5 in folders of its own, and return its config."""
    interrupted = dataclasses.replace(
        configuration,
        models=str(folder / "interrupted"),
        audit=str(folder / "interrupted-audit"),
    )
    interrupt_after(5, interrupted, patch)
    return interrupted


OPTIONS: list[dict[str, Any]] = [
    {},
    {
        "optimizer": "sgd",
        "ema": 0.9,
        "schedule": "linear",
        "augment": "flip,rotate:20,brightness:0.2",
        "precision": "bfloat16",
    },
    {
        "optimizer": "rmsprop",
        "clip_norm": 1.0,
        "label_smoothing": 0.1,
        "sampling": "balanced",
        "augment": "crop:0.3,trivial,erase:0.3,mixup:0.4,cutmix:1",
    },
    {
        "optimizer": "adam",
        "backbone": "efficientnet_lite0",
        "regime": "last:2",
        "weights": "imagenet",
        "epochs": 1,
    },
]


@pytest.mark.parametrize("options", OPTIONS, ids=["adamw", "sgd+ema", "rmsprop", "last two stages"])
def test_training_interrupted_within_an_epoch_ends_bit_for_bit_like_an_uninterrupted_one(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """With dropout, averaged weights, momentum and BatchNorm statistics."""
    configuration = config(
        trained,
        tmp_path / "uninterrupted",
        checkpoint_steps=3,
        audit=str(tmp_path / "uninterrupted-audit"),
        **options,
    )
    uninterrupted = run(configuration)
    interrupted = interrupt_copy(configuration, tmp_path, monkeypatch)
    assert without_times(run(interrupted)) == without_times(uninterrupted)

    expected = rows_by_step(tmp_path / "uninterrupted-audit")
    steps = rows_by_step(tmp_path / "interrupted-audit")
    assert {step: set(rows) for step, rows in steps.items()} == {
        step: set(rows) for step, rows in expected.items()
    }, "the same samples in the same steps"
    repeated = [step for step in steps if len(steps[step]) > len(expected[step])]
    assert repeated == [4, 5], "the steps after the checkpoint at step 3"


def test_each_epoch_uses_every_sample_once_in_another_order(
    trained: Trained, tmp_path: Path
) -> None:
    run(config(trained, tmp_path / "models", epochs=2, audit=str(tmp_path / "audit")))
    steps = list(rows_by_step(tmp_path / "audit").values())
    half = len(steps) // 2
    first = [row for rows in steps[:half] for row in rows]
    second = [row for rows in steps[half:] for row in rows]
    assert len(set(first)) == len(first)
    assert sorted(first) == sorted(second)
    assert first != second


def test_training_resumes_with_another_number_of_workers(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No dropout or BatchNorm before this cut: only the order of additions differs."""
    configuration = config(
        trained,
        tmp_path / "uninterrupted",
        backbone="squeezenet1_1",
        cut="features.5",
        epochs=2,
        batch_size=9,
        checkpoint_steps=2,
        audit=str(tmp_path / "uninterrupted-audit"),
    )
    uninterrupted = run(configuration)
    interrupted = interrupt_copy(configuration, tmp_path, monkeypatch)
    result = run_on(3, interrupted, tmp_path / "interrupted")

    for row, other in zip(uninterrupted.history, result.history, strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)
        assert row["val"]["loss"] == pytest.approx(other["val"]["loss"], rel=1e-4)
    steps = rows_by_step(tmp_path / "interrupted-audit")
    expected = rows_by_step(tmp_path / "uninterrupted-audit")
    assert {step: sorted(set(rows)) for step, rows in steps.items()} == expected


@pytest.mark.slow
def test_sixteen_workers_train_with_the_default_batch_size(
    trained: Trained, tmp_path: Path
) -> None:
    """56 pictures are fewer than 32 per worker: the batch is as large as the workers need."""
    configuration = config(trained, tmp_path, epochs=1, batch_size=0, audit=str(tmp_path / "audit"))
    result = run_on(16, configuration, tmp_path / "models")
    assert result.settings["batch_size"] == 64
    (rows,) = rows_by_step(tmp_path / "audit").values()
    assert len(rows) == len(set(rows)) >= 2 * 16


def test_cleanup_keeps_only_the_weights_of_the_best_epochs(
    trained: Trained, tmp_path: Path
) -> None:
    configuration = config(trained, tmp_path, epochs=4, keep_best=2, checkpoint_steps=2)
    task = plan_training(configuration, "run")
    result = train(task, Group())
    cleanup_after_publish(task, result)
    cleanup_after_publish(task, result)  # as after a job that was killed during its cleanup
    files = (tmp_path / "runs" / "run" / "checkpoints").iterdir()
    kept = {f"runs/run/checkpoints/{path.name}" for path in files}
    ranked = sorted(result.history, key=lambda row: (-row["val"]["top1"], row["val"]["loss"]))
    assert [epoch["epoch"] for epoch in result.best] == [row["epoch"] for row in ranked[:2]]
    assert kept == {epoch["path"] for epoch in result.best}
    assert not list((tmp_path / "unfinished").iterdir())


def test_patience_ends_a_training_and_the_best_epoch_is_evaluated(
    trained: Trained, tmp_path: Path
) -> None:
    result = run(config(trained, tmp_path, epochs=30, patience=2, learning_rate=3e-3))
    ranked = sorted(result.history, key=lambda row: (-row["val"]["top1"], row["val"]["loss"]))
    assert len(result.history) < 30
    assert len(result.history) - ranked[0]["epoch"] == 2
    assert result.metrics["val"]["loss"] == pytest.approx(ranked[0]["val"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("select_by", "best"), [("top1", [3, 1, 2]), ("loss", [2, 1, 3]), ("macro-f1", [1, 2, 3])]
)
def test_epochs_are_ranked_by_the_chosen_metric(select_by: SelectBy, best: list[int]) -> None:
    """Epochs 2 and 3 have the same macro F1, so that the lower loss decides."""
    epochs = [
        RankedEpoch(epoch=1, top1=0.8, loss=0.6, weights=None, macro_f1=0.7),
        RankedEpoch(epoch=2, top1=0.7, loss=0.5, weights=None, macro_f1=0.6),
        RankedEpoch(epoch=3, top1=0.9, loss=0.7, weights=None, macro_f1=0.6),
    ]
    assert [epoch.epoch for epoch in rank_epochs(epochs, select_by, 100)] == best


@pytest.mark.parametrize(
    ("select_by", "samples", "right", "best"),
    [
        ("top1", 22, (21, 22), 0),
        ("top1", 22, (20, 22), 1),
        ("top1", 1000, (900, 909), 0),
        ("top1", 1000, (900, 910), 1),
        ("top1", 22, (21, 20), 0),
        ("top1", 0, (21, 22), 1),  # no margin
        ("macro-f1", 22, (21, 22), 0),
        ("loss", 22, (21, 22), 1),
    ],
)
def test_epoch_0_gives_way_to_an_epoch_that_is_clearly_better(
    select_by: SelectBy, samples: int, right: tuple[int, int], best: int
) -> None:
    """Standard errors: 0.056 for 21 of 22 right samples, 0.068 for 20, 0.0095 for 900 of 1,000."""
    epochs = [
        RankedEpoch(epoch=number, top1=share, macro_f1=share, loss=1 - share, weights=None)
        for number, share in enumerate(count / (samples or 22) for count in right)
    ]
    assert rank_epochs(epochs, select_by, samples)[0].epoch == best
    assert len(rank_epochs([epochs[1]], select_by, samples)) == 1


def test_training_publishes_the_epoch_with_the_lowest_loss(
    trained: Trained, tmp_path: Path
) -> None:
    result = run(config(trained, tmp_path, epochs=6, learning_rate=3e-3, select_by="loss"))
    losses = [row["val"]["loss"] for row in result.history]
    assert result.metrics["val"]["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_checkpoint_of_another_training_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a new ingest under an old name, or a folder copied over another."""
    configuration = config(trained, tmp_path, checkpoint_steps=2)
    interrupt_after(3, configuration, monkeypatch)
    (path,) = (tmp_path / "runs" / "run" / "checkpoints").glob("*.json")
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "fingerprint": "0" * 64}))
    with pytest.raises(ShortfallError, match="another training"):
        run(configuration)
    assert not (tmp_path / "versions").exists()


def test_checkpoint_keeps_the_keys_of_its_file_format(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = config(trained, tmp_path)
    interrupt_after(10, configuration, monkeypatch)  # in the second epoch
    path = max((tmp_path / "runs" / "run" / "checkpoints").glob("*.json"))
    record = json.loads(path.read_text())
    assert list(record) == ["format", "fingerprint", "cursor", "weights", "state", "fixed"]
    cursor = record["cursor"]
    assert list(cursor) == ["epoch", "batch", "step", "sums", "history", "best"]
    assert list(cursor["best"][0]) == ["epoch", "top1", "loss", "weights", "macro_f1"]
    assert list(cursor["history"][0]) == [
        *("epoch", "train", "val", "ledger", "learning_rate", "seconds")
    ]


def test_damaged_checkpoint_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = config(trained, tmp_path, checkpoint_steps=2)
    interrupt_after(3, configuration, monkeypatch)
    for path in (tmp_path / "runs" / "run" / "checkpoints").glob("*.safetensors"):
        flip_a_bit(path, -1)
    with pytest.raises(IntegrityError, match="not what was committed"):
        run(configuration)


def test_damaged_shard_ends_the_training_and_publishes_nothing(tmp_path: Path) -> None:
    from afinar.config.ingest import IngestConfig
    from afinar.ingestion.driver import run_ingest
    from afinar.units.executor import InlineExecutor

    pictures = make_archive(tmp_path / "pictures", 30)
    dataset = str(tmp_path / "dataset")
    run_ingest(IngestConfig(source=str(pictures), dataset=dataset, size=64), InlineExecutor())
    (shard, *_) = open_store(dataset).walk("shards")
    path = Path(shard.uri)
    flip_a_bit(path, path.stat().st_size // 2)
    with pytest.raises(IntegrityError, match="not what was committed"):
        run(config(Trained(pictures, dataset, ""), tmp_path / "models"))
    assert not (tmp_path / "models" / "versions").exists()


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
