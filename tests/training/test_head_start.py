"""Trainings that begin with a solved head: it is epoch 0, and no regime validates worse."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afinar.config.train import TrainConfig
from afinar.training.head_start import HeadSolver, HeadStart, mixed_order, solver_samples
from afinar.training.hyperparameters import STEP_OPTIONS
from afinar.training.linear_probe import SolvedHeads, solve_smooth, solve_standardised
from afinar.training.publish import TrainResult, publish
from afinar.training.task import plan_training
from afinar.training.trainer import Trainer
from tests.conftest import Trained
from tests.training.runs import InterruptionError, config, interrupt_after, run, run_on


def pretrained(trained: Trained, models: Path, **options: Any) -> TrainConfig:
    """Return a configuration of a small network with real weights."""
    values = {"backbone": "efficientnet_lite0", "weights": "imagenet", "epochs": 1, **options}
    return config(trained, models, **values)


def test_frozen_training_is_the_solved_head(trained: Trained, tmp_path: Path) -> None:
    configuration = pretrained(trained, tmp_path, regime="frozen", epochs="auto")
    result = run(configuration)
    assert [row["epoch"] for row in result.history] == [0]
    assert result.epochs == 0
    assert result.metrics["test"]["top1"] >= 0.9
    assert result.metrics["val"]["loss"] == pytest.approx(
        result.history[0]["val"]["loss"], rel=1e-5
    )
    version = publish(plan_training(configuration, "run"), result, 1.0)
    assert version.metrics["epochs"] == 0
    recorded = version.lineage["config"]
    assert recorded["regime"] == "frozen"
    assert not STEP_OPTIONS & (recorded.keys() | result.settings.keys()), "no step was made"


@pytest.mark.parametrize("regime", ["last:1", "full"])
def test_the_solved_head_competes_for_the_best_epoch(
    trained: Trained, tmp_path: Path, regime: str
) -> None:
    """A rate that destroys the network cannot make the published model worse than its probe.

    It destroys the whole network. One stage behind good features learns these two classes even so.
    """
    values = {"learning_rate": 0.3, "clip_norm": 1.0, "select_by": "loss"}
    result = run(pretrained(trained, tmp_path, regime=regime, **values))
    assert [row["epoch"] for row in result.history] == [0, 1]
    best = min(result.history, key=lambda row: row["val"]["loss"])
    assert [epoch["epoch"] for epoch in result.best] == [best["epoch"]]
    assert result.metrics["val"]["loss"] == pytest.approx(best["val"]["loss"], rel=1e-4, abs=1e-6)
    if regime == "full":
        assert best["epoch"] == 0


def test_auto_publishes_the_frozen_network_unless_training_validates_better(
    trained: Trained, tmp_path: Path
) -> None:
    kept = run(pretrained(trained, tmp_path / "a", regime="auto", learning_rate=0.3, clip_norm=1.0))
    assert kept.regime == "frozen"
    assert kept.params_trainable < 0.01 * kept.params_total

    values = {"learning_rate": 1e-4, "select_by": "loss"}
    trained_on = run(pretrained(trained, tmp_path / "b", regime="auto", **values))
    best = min(trained_on.history, key=lambda row: row["val"]["loss"])
    assert trained_on.regime == ("frozen" if best["epoch"] == 0 else "full")
    full = run(pretrained(trained, tmp_path / "c", regime="full", **values))
    assert full.metrics == trained_on.metrics, "it is the same training under another name"


def test_the_solved_head_is_kept_if_no_epoch_is_clearly_better(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The head makes one mistake on 12 validation pictures, and epoch 1 none."""
    solve, run_epoch = HeadSolver.solve, Trainer._run_epoch

    def with_a_mistake(self: HeadSolver) -> HeadStart:
        start = solve(self)
        return start._replace(row={**start.row, "val": {**start.row["val"], "top1": 11 / 12}})

    def without(self: Trainer, state: Any) -> dict[str, Any]:
        row = run_epoch(self, state)
        return {**row, "val": {**row["val"], "top1": 1.0}}

    monkeypatch.setattr(HeadSolver, "solve", with_a_mistake)
    monkeypatch.setattr(Trainer, "_run_epoch", without)
    kept = run(pretrained(trained, tmp_path, regime="full", learning_rate=1e-4))
    assert [epoch["epoch"] for epoch in kept.best] == [0]
    note = "on 12 validation pictures epoch 1, top1 100.0%, is not clearly better than the solved"
    assert note in capsys.readouterr().err


def test_one_sigmoid_output_is_solved_too(trained: Trained, tmp_path: Path) -> None:
    result = run(pretrained(trained, tmp_path, regime="frozen", output="sigmoid", epochs="auto"))
    assert result.epochs == 0
    assert result.metrics["test"]["top1"] >= 0.9


def test_workers_solve_the_same_head(trained: Trained, tmp_path: Path) -> None:
    configuration = pretrained(trained, tmp_path, regime="frozen", epochs="auto")
    one, two = (run_on(workers, configuration, tmp_path / str(workers)) for workers in (1, 2))
    assert one.history[0]["choices"] == two.history[0]["choices"]
    assert one.metrics["test"]["loss"] == pytest.approx(two.metrics["test"]["loss"], rel=1e-3)


def test_an_interrupted_training_does_not_solve_its_head_again(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = pretrained(trained, tmp_path / "whole", regime="last:1", checkpoint_steps=2)
    whole = run(configuration)
    cut = dataclasses.replace(configuration, models=str(tmp_path / "cut"))
    interrupt_after(3, cut, monkeypatch)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the checkpoint has the head")

    monkeypatch.setattr("afinar.training.head_start.solve_heads", refuse)
    assert losses(run(cut)) == losses(whole)


def test_a_training_interrupted_before_its_first_step_goes_on_alike(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of epoch 0 has the head of epoch 0, not that which the steps begin with."""
    configuration = pretrained(trained, tmp_path / "whole", regime="last:1")
    whole = run(configuration)

    def interrupt(*_: Any) -> Any:
        raise InterruptionError

    cut = dataclasses.replace(configuration, models=str(tmp_path / "cut"))
    with monkeypatch.context() as context, pytest.raises(InterruptionError):
        context.setattr(Trainer, "_run_epoch", interrupt)
        run(cut)
    assert losses(run(cut)) == losses(whole)


def test_training_begins_with_a_head_for_the_statistics_of_batches(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rate near 0 the loss of epoch 1 is that of its first head in train mode."""
    values = {"regime": "full", "learning_rate": 1e-9, "augment": "none"}
    with_own = run(pretrained(trained, tmp_path / "own", **values))
    monkeypatch.setattr(HeadSolver, "first_head", lambda *_: None)
    with_first = run(pretrained(trained, tmp_path / "first", **values))
    assert with_own.history[0]["val"] == with_first.history[0]["val"]
    assert with_own.history[1]["train"]["loss"] < 0.5 * with_first.history[1]["train"]["loss"]


def test_epoch_0_is_the_frozen_solution_even_if_training_cannot_begin_with_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best head is made that of standardised features. BatchNorm needs no head of its own."""

    def standardised(*splits: Any) -> SolvedHeads:
        return SolvedHeads(solve_standardised(*splits), solve_smooth(*splits))

    def smooth(*splits: Any) -> SolvedHeads:
        head = solve_smooth(*splits)
        return SolvedHeads(head, head)

    monkeypatch.setattr("afinar.training.head_start.trained_norms", lambda _: False)
    results = {}
    for name, heads in (("smooth", smooth), ("standardised", standardised)):
        monkeypatch.setattr("afinar.training.head_start.solve_heads", heads)
        for regime in ("frozen", "last:1"):
            values = {"regime": regime, "learning_rate": 1e-9, "augment": "none"}
            values["epochs"] = "auto" if regime == "frozen" else 1
            results[name, regime] = run(pretrained(trained, tmp_path / name / regime[:4], **values))
    for name, powers in (("smooth", [0.0, 0.5]), ("standardised", [1.0])):
        frozen, last = (results[name, regime].history[0] for regime in ("frozen", "last:1"))
        assert [choice["power"] for choice in frozen["choices"]] == powers
        assert last["choices"] == frozen["choices"]
        assert last["val"]["loss"] == pytest.approx(frozen["val"]["loss"], rel=1e-3)
    after = [results[name, "last:1"].history[1]["val"] for name in ("smooth", "standardised")]
    assert after[0] == after[1], "both trainings began with the smooth head"


def test_order_of_batches_mixes_a_few_shards_at_a_time() -> None:
    shards = np.random.default_rng(0).integers(0, 20, 1000)
    order = mixed_order(shards, np.random.default_rng(1))
    assert sorted(order) == list(range(1000))
    in_order, sizes = shards[order], [(shards < limit).sum() for limit in (8, 16)]
    for block, numbers in zip(
        np.split(in_order, sizes), (range(8), range(8, 16), range(16, 20)), strict=True
    ):
        assert set(block) == set(numbers)
        assert len(set(block[:32])) >= len(numbers) - 2, "a batch has samples of most shards"


def losses(result: TrainResult) -> list[tuple[float, float]]:
    return [(row["train"]["loss"], row["val"]["loss"]) for row in result.history]


def test_accumulated_parts_give_the_gradient_of_the_whole_step(
    trained: Trained, tmp_path: Path
) -> None:
    """Without BatchNorm and dropout only the order of additions differs."""
    configuration = config(trained, tmp_path, backbone="squeezenet1_1", cut="features.5", epochs=2)
    whole = run(dataclasses.replace(configuration, models=str(tmp_path / "whole")))
    parts = run(dataclasses.replace(configuration, models=str(tmp_path / "parts"), accumulate=3))
    for row, other in zip(whole.history, parts.history, strict=True):
        assert row["train"]["loss"] == pytest.approx(other["train"]["loss"], rel=1e-4)


def test_a_large_head_is_solved_on_a_part_of_the_samples() -> None:
    assert solver_samples(2000, 1280, 10, 2**32, "cpu") == 2000
    assert solver_samples(10**6, 2048, 1000, 2**34, "cpu") < 10_000
    assert solver_samples(10**6, 2048, 10, 2**20, "cpu") == 2**20 // (4 * 2048)
