"""Scores and temperatures: what other libraries compute of all samples at once, whatever worker holds which."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from afinar.errors import ShortfallError
from afinar.training.distributed import Group
from afinar.training.metrics import fit_temperature, score
from sklearn import metrics as sk
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from tests.servers import free_port

Sample = tuple[Tensor, Tensor]


def drawn(
    samples: int, classes: int, seed: int, absent: tuple[int, ...] = (), sharpness: float = 1.0
) -> Sample:
    """Logits, and targets drawn from their softmax, so that they are calibrated; classes without samples."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    chances = logits.softmax(dim=1)
    chances[:, list(absent)] = 0
    targets = torch.multinomial(chances, 1, generator=generator)[:, 0]
    return (sharpness * logits).float(), targets


def with_a_silent_class() -> Sample:
    """Ten classes; the last is neither true nor predicted, the one before it predicted but never true."""
    logits, targets = drawn(101, 10, 1, absent=(8, 9))
    logits[:, 9] = -50
    return logits, targets


CASES: dict[str, Callable[[], Sample]] = {
    "ten classes": lambda: drawn(101, 10, 0),
    "classes without samples": with_a_silent_class,
    "two classes": lambda: drawn(50, 2, 2),
    "two samples": lambda: drawn(2, 3, 3),  # of three workers one has none
    "only one class is true": lambda: drawn(17, 2, 4, absent=(0,)),
    "tied and certain": lambda: (
        torch.tensor([[30.0, 0.0]] * 5 + [[0.0, 0.0]] * 4),
        torch.tensor([0, 1, 0] * 3),
    ),
}


def names(logits: Tensor) -> list[str]:
    return [f"class {number}" for number in range(logits.shape[1])]


def computed(group: Group) -> dict[str, Any]:
    """What one worker gets of every case; the lower the rank, the more samples it holds."""
    found: dict[str, Any] = {}
    for case, make in CASES.items():
        logits, targets = make()
        mine = torch.arange(len(targets)) % (group.size * (group.size + 1) // 2)
        first = group.rank * group.size - group.rank * (group.rank - 1) // 2
        mine = (mine >= first) & (mine < first + group.size - group.rank)
        share = (logits[mine], targets[mine])
        found[case] = {
            "score": asdict(score(*share, names(logits))),
            "cooler": asdict(score(*share, names(logits), temperature=0.5)),
            "temperature": fit_temperature(*share, group),
            "held": len(share[1]),
        }
    return found


def _worker(rank: int, size: int, port: int, folder: str) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size
    )
    Path(folder, str(rank)).write_text(json.dumps(computed(Group()), allow_nan=False))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return computed(Group())


@pytest.fixture(scope="module", params=[1, 2, 3])
def on_workers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of so many workers got."""
    folder = tmp_path_factory.mktemp("scores")
    spawn: Callable[..., Any] = start_processes
    spawn(
        _worker,
        args=(request.param, free_port(), str(folder)),
        nprocs=request.param,
        start_method="spawn",
    )
    return [json.loads((folder / str(rank)).read_text()) for rank in range(request.param)]


def flat(one: dict[str, Any]) -> dict[str, Any]:
    return {
        name: -1.0 if value is None else value for name, value in one.items() if name != "recall"
    }


@pytest.mark.parametrize("case", CASES)
def test_every_worker_gets_what_one_alone_computes(
    case: str, on_workers: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    held = [found[case]["held"] for found in on_workers]
    assert sum(held) == alone[case]["held"]
    assert held == [alone[case]["held"]] or len(set(held)) > 1, "shares are uneven"
    for found in on_workers:
        for key in ("score", "cooler", "temperature"):
            assert found[case][key] == on_workers[0][case][key]
    for key in ("score", "cooler"):
        ours, reference = on_workers[0][case][key], alone[case][key]
        assert ours["recall"] == reference["recall"]
        assert flat(ours) == pytest.approx(flat(reference), rel=1e-12)
    assert on_workers[0][case]["temperature"] == pytest.approx(alone[case]["temperature"], rel=1e-8)


def test_some_worker_has_an_empty_share(on_workers: list[dict[str, Any]]) -> None:
    if len(on_workers) == 3:
        assert on_workers[2]["two samples"]["held"] == 0


def probabilities(logits: Tensor) -> Any:
    return logits.double().softmax(dim=1).numpy()


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_scikit_learn(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    ours, true, chances = alone[case]["score"], targets.numpy(), probabilities(logits)
    labels, guessed = range(logits.shape[1]), chances.argmax(axis=1)
    assert ours["samples"] == len(true)
    assert ours["loss"] == pytest.approx(sk.log_loss(true, chances, labels=labels), rel=1e-9)
    assert ours["top1"] == sk.accuracy_score(true, guessed)
    assert ours["macro_f1"] == pytest.approx(sk.f1_score(true, guessed, average="macro"), rel=1e-12)
    recall = sk.recall_score(true, guessed, labels=labels, average=None, zero_division=np.nan)
    theirs = {
        name: None if math.isnan(one) else one
        for name, one in zip(names(logits), recall, strict=True)
    }
    assert ours["recall"] == pytest.approx(theirs)
    if len(labels) >= 6:
        assert ours["top5"] == sk.top_k_accuracy_score(true, chances, k=5, labels=labels)
        assert ours["top5"] > ours["top1"]
    else:
        assert ours["top5"] is None
    if len(labels) == 2 and len(set(true)) == 2:
        assert ours["auroc"] == pytest.approx(sk.roc_auc_score(true, chances[:, 1]), abs=1e-6)
    else:
        assert ours["auroc"] is None


def test_classes_that_do_not_occur(alone: dict[str, Any]) -> None:
    from torchmetrics.functional.classification import multiclass_f1_score

    logits, targets = CASES["classes without samples"]()
    ours = alone["classes without samples"]["score"]
    assert (8 in logits.argmax(dim=1), 9 in logits.argmax(dim=1)) == (True, False)
    assert [name for name, recall in ours["recall"].items() if recall is None] == [
        "class 8",
        "class 9",
    ]
    theirs = multiclass_f1_score(logits, targets, num_classes=10, average="macro")
    assert ours["macro_f1"] == pytest.approx(float(theirs), abs=1e-6)
    over_all_ten = sk.f1_score(
        targets, logits.argmax(dim=1), labels=range(10), average="macro", zero_division=0
    )
    assert ours["macro_f1"] == pytest.approx(over_all_ten * 10 / 9), (
        "the class that is nowhere is left out"
    )


@pytest.mark.parametrize("case", CASES)
def test_the_calibration_error_is_that_of_its_definition(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    for key, scale in (("score", 1), ("cooler", 2)):
        chances = probabilities(logits * scale)
        confidence, right = chances.max(axis=1), chances.argmax(axis=1) == targets.numpy()
        expected = 0.0
        for number in range(15):
            inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
            if inside.any():
                expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
        assert alone[case][key]["calibration_error"] == pytest.approx(expected, abs=1e-12)


def test_temperature_changes_how_sure_not_what() -> None:
    logits, targets = drawn(20_000, 4, 5)  # more than are looked at in one go
    plain, warm = (score(logits, targets, names(logits), temperature=one) for one in (1.0, 2.0))
    scaled = score(logits / 2, targets, names(logits))
    assert warm.loss == pytest.approx(scaled.loss, rel=1e-6)
    assert warm.loss != pytest.approx(plain.loss, rel=1e-3)
    assert (warm.top1, warm.recall, warm.macro_f1) == (plain.top1, plain.recall, plain.macro_f1)


def test_margins_beyond_what_a_probability_can_tell_apart_are_ranked() -> None:
    logits, targets = torch.tensor([[0.0, 60.0], [0.0, 50.0], [0.0, 40.0]]), torch.tensor([1, 1, 0])
    assert len(set(logits.double().softmax(dim=1)[:, 1].tolist())) == 1
    assert score(logits, targets, ["a", "b"]).auroc == 1.0


def test_answers_that_are_no_numbers_are_refused() -> None:
    logits, targets = drawn(20, 3, 6)
    logits[7, 1] = math.nan
    with pytest.raises(ShortfallError, match="not finite"):
        score(logits, targets, names(logits))
    with pytest.raises(ShortfallError, match="not finite"):
        fit_temperature(logits, targets, Group())
    with pytest.raises(ValueError, match="no sample"):
        score(logits[:0], targets[:0], names(logits))


def nll(logits: Tensor, targets: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, targets))


@pytest.mark.parametrize("sharpness", [1 / 3, 1.0, 3.0])
def test_temperature_undoes_what_made_logits_too_sharp(sharpness: float) -> None:
    logits, targets = drawn(20_000, 5, 7, sharpness=sharpness)
    temperature = fit_temperature(logits, targets, Group())
    assert temperature == pytest.approx(sharpness, rel=0.05)
    best = nll(logits, targets, temperature)
    assert best <= nll(logits, targets, 1.0)
    for factor in (0.99, 0.9999, 1.0001, 1.01):
        assert best < nll(logits, targets, temperature * factor)


@pytest.mark.parametrize("case", CASES)
def test_temperature_never_makes_samples_less_likely(case: str, alone: dict[str, Any]) -> None:
    logits, targets = CASES[case]()
    temperature = alone[case]["temperature"]
    assert 0.05 < temperature <= 20
    assert nll(logits, targets, temperature) <= nll(logits, targets, 1.0)


def test_where_nothing_says_how_sure_to_be_temperature_is_one() -> None:
    logits, targets = drawn(30, 4, 8)
    assert fit_temperature(logits, logits.argmax(dim=1), Group()) == 1.0, "every sample is right"
    assert fit_temperature(torch.zeros(30, 4), targets, Group()) == 1.0, "logits are all alike"
    assert fit_temperature(logits[:0], targets[:0], Group()) == 1.0, "no samples"


def test_worthless_logits_are_flattened() -> None:
    logits, _ = drawn(30, 4, 9)
    assert fit_temperature(logits, logits.argmin(dim=1), Group()) == pytest.approx(20)
