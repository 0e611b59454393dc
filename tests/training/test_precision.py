"""Reduced precision: which dtype is chosen, the scale of float16, and what stays in float32."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from afinar.config.train import TrainConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError
from afinar.models.networks.network import build_network
from afinar.models.networks.precision import use_bfloat16, use_float16
from afinar.models.registry.golden import compute_logits, get_golden, softmax
from afinar.storage.arrow import from_parquet
from afinar.storage.objects import ObjectRef, get_object
from afinar.storage.open import open_store
from afinar.training import optim
from afinar.training.batches import Batch, Samples
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator
from afinar.training.inputs import FeatureExtractor, FeatureInputs
from afinar.training.optim import Optimizer
from afinar.training.preparation import common_precision
from afinar.training.sampler import GlobalBatch
from afinar.training.steps import Loss, TrainStep
from afinar.training.task import labelled_samples, plan_training
from afinar.training.timing import EpochTimer
from afinar.training.worker import train
from tests.conftest import Trained
from tests.gloo import run_in_group
from tests.training.runs import config, interrupt_after, run

START = 2.0**16  # scale of a new training


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((6, 1), torch.float32),
        ((7, 0), torch.float16),
        ((7, 5), torch.float16),
        ((8, 0), torch.bfloat16),
    ],
    ids=["P40", "V100", "T4", "A100"],
)
def test_auto_takes_the_precision_that_the_gpus_of_all_workers_multiply(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    group: Any = SimpleNamespace(device=torch.device("cuda"), is_rank_zero=True, all_true=bool)
    assert common_precision(TrainConfig(describe=True), group) == expected


def test_a_named_precision_is_taken_on_any_device() -> None:
    cpu = torch.device("cpu")
    assert use_float16("float16", cpu)
    assert not use_bfloat16("float16", cpu)
    assert not use_float16("auto", cpu)
    assert not use_float16("float32", torch.device("cuda"))


def scaled(module: nn.Module, **options: Any) -> Optimizer:
    groups = [{"params": list(module.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}]
    options = {"learning_rate": 0.1, "schedule": "constant", "warmup": 0.0, **options}
    return Optimizer(
        module, groups, TrainConfig(describe=True, **options), 9, precision=torch.float16
    )


def backward(optimizer: Optimizer, module: nn.Module) -> None:
    optimizer.zero_grad()
    optimizer.scale(module(torch.ones(1, 2)).sum()).backward()  # type: ignore[no-untyped-call]


def scale_of(optimizer: Optimizer) -> float:
    return float(optimizer.state()["scaler.scale"])


@pytest.fixture
def nan_in_new_memory() -> Iterator[None]:
    """Fill what torch allocates with NaN, so that no result can depend on it."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_an_overflow_changes_no_weights_and_halves_the_scale(name: Any, clip_norm: float) -> None:
    module = nn.Linear(2, 1)
    optimizer = scaled(module, optimizer=name, clip_norm=clip_norm)
    before = [parameter.clone() for parameter in module.parameters()]
    backward(optimizer, module)
    assert module.weight.grad is not None
    assert module.weight.grad.tolist() == [[START, START]], "the loss is scaled"
    module.weight.grad[0, 0] = torch.inf
    optimizer.step(0)
    assert all(map(torch.equal, before, module.parameters()))
    assert scale_of(optimizer) == START / 2

    backward(optimizer, module)
    optimizer.step(1)
    assert scale_of(optimizer) == START / 2
    other = nn.Linear(2, 1)
    other.load_state_dict(dict(zip(("weight", "bias"), before, strict=True)))
    without_overflow = scaled(other, optimizer=name, clip_norm=clip_norm)
    backward(without_overflow, other)
    without_overflow.step(0)
    assert all(map(torch.equal, other.parameters(), module.parameters()))
    assert not torch.equal(before[0], module.weight)


def test_a_resumed_optimizer_continues_with_the_scale_of_its_checkpoint() -> None:
    module, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer, resumed = scaled(module), scaled(other)
    backward(optimizer, module)
    assert module.weight.grad is not None
    module.weight.grad.fill_(torch.nan)
    optimizer.step(0)
    backward(optimizer, module)
    optimizer.step(1)

    saved = safetensors.torch.load(safetensors.torch.save(optimizer.state()))
    resumed.load(module.state_dict(), saved)
    assert resumed.state().keys() == saved.keys()
    assert scale_of(resumed) == START / 2
    assert int(resumed.state()["scaler._growth_tracker"]) == 1


def test_a_checkpoint_of_another_precision_is_resumed() -> None:
    """As when a run moves from an A100 to a T4, or back."""
    module = nn.Linear(2, 1)
    plain = Optimizer(
        module,
        [{"params": list(module.parameters()), "weight_decay": 0.0, "lr_scale": 1.0}],
        TrainConfig(describe=True, learning_rate=0.1),
        9,
    )
    assert not [name for name in plain.state() if name.startswith("scaler.")]
    optimizer = scaled(module)
    optimizer.load(module.state_dict(), plain.state())
    assert scale_of(optimizer) == START
    plain.load(module.state_dict(), optimizer.state())


def test_a_training_in_float16_that_overflowed_resumes_bit_for_bit(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scale is so large that several steps overflow before and after the checkpoint."""
    monkeypatch.setattr(
        optim, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**30)
    )
    options = {"precision": "float16", "epochs": 1, "checkpoint_steps": 3}
    whole = run(config(trained, tmp_path / "whole", **options))
    assert whole.settings["precision"] == "float16"
    cut = config(trained, tmp_path / "cut", **options)
    interrupt_after(5, cut, monkeypatch)
    checkpoints = tmp_path / "cut" / "runs" / "run" / "checkpoints"
    (record,) = [json.loads(path.read_text()) for path in checkpoints.glob("*.json")]
    state = safetensors.torch.load_file(checkpoints.parents[2] / record["state"]["path"])
    assert float(state["scaler.scale"]) == 2.0**27, "three steps overflowed"
    assert run(cut).weights == whole.weights


class Spike(nn.Module):
    """A linear layer whose gradient overflows for inputs above 100."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.linear(inputs)
        return outputs * torch.where(inputs[:, :1] > 100, torch.inf, 1.0)


def train_step(group: Group, inputs: Tensor, accumulate: int) -> tuple[TrainStep, Optimizer]:
    torch.manual_seed(0)
    module = Spike()
    optimizer = scaled(module, optimizer="sgd")
    rows = np.arange(len(inputs))
    step = TrainStep(
        model=group.wrap(module),
        inputs=FeatureInputs(inputs, rows),
        samples=Samples(rows, rows % 2),
        optimizer=optimizer,
        loss=Loss(),
        group=group,
        seed=0,
        precision=torch.float16,
        accumulate=accumulate,
    )
    return step, optimizer


def _overflow_on_rank_1(rank: int, folder: str) -> None:
    group, timer = Group(), EpochTimer(torch.device("cpu"))
    inputs = torch.ones(8, 2)
    inputs[4] = 1000.0  # the first sample of rank 1, in the first of its two parts
    step, optimizer = train_step(group, inputs, accumulate=2)
    positions = np.arange(8)
    local = positions[4 * rank : 4 * rank + 4]

    seen = []
    for number in range(2):
        batch = Batch(
            GlobalBatch(positions, np.zeros_like(positions)), local, local, step.inputs.load(local)
        )
        step(batch, epoch=0, step=number, timer=timer)
        weights = [parameter.tolist() for parameter in optimizer.eval_model.parameters()]
        seen.append({"scale": scale_of(optimizer), "weights": weights})
        inputs[4] = 1.0
    Path(folder, str(rank)).write_text(json.dumps(seen))


def test_an_overflow_on_one_worker_skips_the_step_on_all(tmp_path: Path) -> None:
    torch.manual_seed(0)
    initial = [parameter.tolist() for parameter in Spike().parameters()]
    run_in_group(2, _overflow_on_rank_1, str(tmp_path))
    zero, one = (json.loads((tmp_path / str(rank)).read_text()) for rank in (0, 1))
    assert zero == one
    assert [step["scale"] for step in zero] == [START / 2, START / 2]
    assert zero[0]["weights"] == initial
    assert zero[1]["weights"] != initial


class Wide(nn.Module):
    """Stands for a backbone with large activations."""

    def features(self, images: Tensor) -> Tensor:
        return (images @ torch.full((2, 2), 1e4)).float()


class Plain:
    """Inputs that are the rows of a tensor of ones."""

    reads_shards = False

    def load(self, rows: Any) -> Tensor:
        return torch.full((len(rows), 2), 100.0)

    def to_device(self, loaded: Tensor, *_: Any, **__: Any) -> Tensor:
        return loaded


def test_features_that_float16_cannot_hold_are_refused() -> None:
    network: Any = Wide()
    pixels: Any = Plain()
    rows = np.arange(4)
    half = FeatureExtractor(
        network=network, pixels=pixels, group=Group(), precision=torch.float16, threads=1
    )
    with pytest.raises(RequestError, match="give --precision float32"):
        half.compute(rows)
    assert dataclasses.replace(half, precision=torch.bfloat16).compute(rows).isfinite().all()


def test_epochs_are_validated_in_the_precision_of_training() -> None:
    module = nn.Linear(2, 2)
    evaluator = Evaluator(Plain(), ["a", "b"], Group(), 1, torch.bfloat16)
    samples = Samples(np.arange(4), np.arange(4) % 2)
    seen: list[torch.dtype] = []
    module.register_forward_hook(lambda _, __, outputs: seen.append(outputs.dtype))
    evaluator.evaluate(module, samples)
    evaluator.compute_logits(module, samples)
    assert seen == [torch.bfloat16, torch.float32]


def test_the_final_evaluation_and_golden_samples_are_those_of_float32(
    trained: Trained, tmp_path: Path
) -> None:
    """Also in the frozen regime, whose features are computed once in reduced precision."""
    configuration = config(
        trained,
        tmp_path,
        backbone="efficientnet_lite0",
        weights="imagenet",
        regime="frozen",
        epochs="auto",
        precision="bfloat16",
    )
    task = plan_training(configuration, "run")
    result = train(task, Group())
    assert result.settings["precision"] == "bfloat16"
    assert result.metrics["val"]["loss"] != pytest.approx(
        result.history[0]["val"]["loss"], rel=1e-6
    ), "epoch 0 was validated in reduced precision"

    store = open_store(str(tmp_path))
    network, _ = build_network(task.architecture)
    network.load_state_dict(safetensors.torch.load(get_object(store, ObjectRef(**result.weights))))
    network.eval().to(memory_format=torch.channels_last)
    golden = get_golden(store, ObjectRef(**result.golden))
    expected = compute_logits(network, golden.images, task.input_view)
    np.testing.assert_allclose(golden.logits, expected, rtol=1e-4, atol=1e-4)

    dataset = open_dataset(trained.dataset)
    rows = labelled_samples(dataset, configuration, task.classes).test.rows
    logits = compute_logits(network, dataset.read(rows), task.input_view)
    scores = softmax(logits / result.temperature).max(axis=1)
    written = from_parquet(store.get("runs/run/test.parquet")).column("score").to_numpy()
    np.testing.assert_allclose(written, scores, rtol=1e-4)
