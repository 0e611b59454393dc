"""Mixup and CutMix: their distributions, their labels, and equal gradients on any workers."""

from __future__ import annotations

import copy
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

from afinar.config.augmentation import Augmentation, parse_augment
from afinar.config.train import ClassWeights
from afinar.models.networks.heads import BinaryLogits
from afinar.training.batches import Batch, BatchLoader, Samples
from afinar.training.distributed import Group
from afinar.training.mixing import Mixes, Mixing, symmetric_beta, with_partners
from afinar.training.sampler import GlobalBatch, RowNumbers, count_repeats
from afinar.training.steps import Loss, TrainStep, class_weights
from afinar.training.timing import EpochTimer

SIDE, CLASSES, SAMPLES = 16, 3, 40
CPU = torch.device("cpu")


def mixing(**augmentation: Any) -> Mixing:
    keys = np.random.default_rng(0).integers(0, 2**63, 4000, dtype=np.uint64)
    return Mixing(augmentation=Augmentation(**augmentation), keys=keys, seed=0, side=SIDE)


def whole(size: int) -> GlobalBatch:
    return GlobalBatch(np.arange(size), np.zeros(size, dtype=np.int64))


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_shares_have_a_symmetric_beta_distribution(alpha: float) -> None:
    rng, quantiles = np.random.default_rng(1), np.linspace(0.05, 0.95, 10)
    expected = np.quantile(rng.beta(alpha, alpha, 100_000), quantiles)
    shares = symmetric_beta(alpha, *rng.random((2, 100_000)))
    assert np.quantile(shares, quantiles) == pytest.approx(expected, abs=0.02)
    extremes = np.array([0.0, 1 - 2**-53])
    assert np.isfinite(symmetric_beta(alpha, extremes, extremes)).all()
    drawn = mixing(mixup=alpha).draw(whole(4000), 3).shares
    assert np.quantile(drawn, quantiles) == pytest.approx(expected, abs=0.1)


def test_label_of_cutmix_is_the_share_of_pixels() -> None:
    mixes = mixing(cutmix=1.0).draw(whole(500), 0)
    white, black = torch.ones(500, 3, SIDE, SIDE), torch.zeros(500, 3, SIDE, SIDE)
    np.testing.assert_allclose(
        mixes.blend(white, black).mean(dim=(1, 2, 3)), mixes.shares, atol=1e-6
    )
    assert set(mixes.blend(white, black).flatten().tolist()) == {0.0, 1.0}
    # torchvision draws a share, and boxes around random centres, in the same way.
    torch.manual_seed(0)
    reference = v2.CutMix(num_classes=2)
    theirs = [
        reference.make_params([torch.zeros(1, 3, 64, 64)])["lam_adjusted"] for _ in range(2000)
    ]
    ours = Mixing(augmentation=Augmentation(cutmix=1.0), keys=mixing().keys, seed=0, side=64).draw(
        whole(4000), 0
    )
    quantiles = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert np.quantile(ours.shares, quantiles) == pytest.approx(
        np.quantile(theirs, quantiles), abs=0.05
    )


def test_mixup_blends_pixels_as_labels() -> None:
    mixes = mixing(mixup=0.4).draw(whole(8), 0)
    pictures, others = torch.rand(2, 8, 3, SIDE, SIDE)
    shares = torch.from_numpy(mixes.shares).float()[:, None, None, None]
    mixed = mixes.blend(pictures, others)
    assert torch.allclose(mixed, shares * pictures + (1 - shares) * others, atol=1e-6)
    assert len(set(mixes.shares.tolist())) == 8, "each picture has its own"


def test_with_both_a_picture_is_mixed_in_one_of_the_two_ways() -> None:
    mixes = mixing(mixup=0.4, cutmix=1.0).draw(whole(2000), 0)
    is_cutmix = mixes.opacity == 1
    assert is_cutmix.mean() == pytest.approx(0.5, abs=0.05)
    assert (mixes.boxes[2:, ~is_cutmix] == 0).all()
    repeated = GlobalBatch(np.zeros(3, dtype=np.int64), np.array([0, 1, 1]))
    shares = mixing(mixup=0.4).draw(repeated, 0).shares
    assert shares[0] != shares[1] == shares[2], "a repetition is mixed differently"


def test_soft_targets_give_the_loss_of_class_numbers() -> None:
    logits, targets = torch.randn(20, CLASSES), torch.arange(20) % CLASSES
    loss = Loss(smoothing=0.1, class_weights=torch.tensor([0.5, 1.0, 3.0]))
    one_hot = F.one_hot(targets, CLASSES).float()
    assert loss(logits, one_hot) == pytest.approx(float(loss(logits, targets)), rel=1e-6)
    # A mixture has the mean of the two losses.
    other = targets.roll(1)
    mixed = 0.3 * one_hot + 0.7 * F.one_hot(other, CLASSES)
    mean = 0.3 * loss(logits, targets) + 0.7 * loss(logits, other)
    assert loss(logits, mixed) == pytest.approx(float(mean), rel=1e-6)


def test_divisor_of_a_mixed_batch_is_the_weight_of_its_soft_targets() -> None:
    samples = Samples(np.arange(9), np.array([0, 0, 1, 2, 2, 2, 1, 0, 0]))
    weights = torch.tensor([0.5, 1.0, 3.0])
    mixes = mixing(mixup=1.0).draw(whole(9), 0)
    shares = torch.from_numpy(mixes.shares)[:, None]
    own = F.one_hot(torch.from_numpy(samples.targets), CLASSES)
    soft = shares * own + (1 - shares) * own[[*range(1, 9), 0]]
    loss = Loss(class_weights=weights)
    assert float(loss.weight(samples, np.arange(9), mixes)) == pytest.approx(
        float((soft.float() @ weights).sum()), rel=1e-6
    )
    assert float(loss.weight(samples, np.arange(9))) == pytest.approx(13.0)
    assert Loss().weight(samples, np.arange(9), mixes) == 9


def test_soft_targets_of_one_sigmoid_are_those_of_binary_cross_entropy() -> None:
    outputs, share = torch.randn(20, 1), torch.rand(20)
    loss = Loss()(BinaryLogits()(outputs), torch.stack([1 - share, share], dim=1))
    expected = F.binary_cross_entropy_with_logits(outputs[:, 0], share, reduction="sum")
    assert loss == pytest.approx(float(expected), rel=1e-6)


class Pictures:
    """Inputs that are not augmented. Counts what a worker loads."""

    reads_shards = False

    def __init__(self) -> None:
        self.pictures = torch.randn(
            SAMPLES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)
        )
        self.loaded: list[int] = []

    def load(self, rows: RowNumbers) -> Tensor:
        self.loaded += rows.tolist()
        return torch.from_numpy(rows)

    def to_device(
        self,
        loaded: Tensor,
        rows: RowNumbers,
        epoch: int | None,
        timer: EpochTimer,
        repeats: RowNumbers | None = None,
    ) -> Tensor:
        assert torch.equal(loaded, torch.from_numpy(rows)), "each row has its own picture"
        return self.pictures[loaded]


class Gradients:
    """Optimizer that changes nothing."""

    def zero_grad(self) -> None: ...

    def scale(self, loss: Tensor) -> Tensor:
        return loss

    def step(self, step: int) -> None: ...


def member(rank: int, size: int) -> Group:
    """Return a group as a worker sees it whose collective operations are not called."""
    group = Group()
    group.rank, group.size = rank, size
    return group


def gradient(
    network: nn.Module, rank: int, workers: int, accumulate: int, augment: str
) -> tuple[Tensor, list[int]]:
    """Return the gradient of a worker in a batch of 9 samples, and the rows that it loads."""
    samples = Samples(np.arange(SAMPLES), np.arange(SAMPLES) // 2 % CLASSES)
    positions = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5])
    batch = GlobalBatch(positions, count_repeats(positions))
    group, inputs = member(rank, workers), Pictures()
    augmentation = parse_augment(augment, "full")
    timer = EpochTimer(CPU)
    loader = BatchLoader(inputs, samples, group, 0, partners=augmentation.mixes)
    network = copy.deepcopy(network)
    optimizer: Any = Gradients()
    step = TrainStep(
        model=network,
        inputs=inputs,
        samples=samples,
        optimizer=optimizer,
        loss=Loss(smoothing=0.1, class_weights=class_weights(samples, CLASSES, "sqrt", CPU)),
        group=group,
        seed=0,
        precision=torch.float32,
        accumulate=accumulate,
        mixing=Mixing(augmentation=augmentation, keys=mixing().keys[:SAMPLES], seed=0, side=SIDE)
        if augmentation.mixes
        else None,
    )
    (loaded,) = loader.load([batch], 0, timer, lambda _: None)
    assert isinstance(loaded, Batch)
    step(loaded, epoch=0, step=0, timer=timer)
    flat = [
        parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None
    ]
    return torch.cat(flat), inputs.loaded


@pytest.mark.parametrize("augment", ["none", "mixup:0.4", "cutmix:1", "mixup:1,cutmix:1"])
def test_workers_have_together_the_gradient_of_one(augment: str) -> None:
    """DDP takes the mean of the workers' gradients. 9 samples are not divisible by 2."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(CLASSES))
    network(torch.zeros(1, 3, SIDE, SIDE))
    alone, loaded = gradient(network, 0, 1, 1, augment)
    assert len(loaded) == 9, "a single worker has all partners"
    for workers, accumulate in ((1, 2), (2, 1), (3, 1), (3, 2)):
        parts = [gradient(network, rank, workers, accumulate, augment) for rank in range(workers)]
        together = torch.stack([part for part, _ in parts]).mean(dim=0)
        assert torch.allclose(together, alone, atol=1e-5), (workers, accumulate)
    if augment != "none":
        assert not torch.allclose(alone, gradient(network, 0, 1, 1, "none")[0], atol=1e-3)


def test_partner_is_the_next_sample_of_the_global_batch() -> None:
    assert with_partners(np.array([0, 2, 4]), 5).tolist() == [0, 1, 2, 3, 4]
    assert with_partners(np.array([4]), 9).tolist() == [4, 5]
    mixes = Mixes(np.array([0.25]), np.array([0.25], dtype=np.float32), np.zeros((4, 1), np.int64))
    mixed = mixes.blend(torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))
    assert set(mixed.flatten().tolist()) == {0.25}


def test_class_weights_are_bounded_and_have_a_mean_of_one() -> None:
    samples = Samples(np.arange(1010), np.repeat([0, 1], [1000, 10]))
    ratios = {}
    for kind in get_args(ClassWeights):
        weights = class_weights(samples, 2, kind, CPU)
        if weights is not None:
            ratios[kind] = float(weights[1] / weights[0])
            assert float(weights[samples.targets].mean()) == pytest.approx(1, rel=1e-5)
    assert ratios == pytest.approx({"balanced": 100, "sqrt": 10, "capped": 10}, rel=1e-5)
    few = Samples(np.arange(1001), np.repeat([0, 1], [1000, 1]))
    weights = class_weights(few, 2, "sqrt", CPU)
    assert weights is not None
    assert float(weights[1] / weights[0]) == pytest.approx(1000**0.5, rel=1e-5)
