"""Solution of a linear head on the features of a pretrained backbone, before any epoch.

A random head sends large, random gradients into a pretrained backbone (Kumar et al. 2022, arXiv
2202.10054). A solved head is the best that the features allow, so training starts from there. A
training that starts from a published model may have a better one: that of the model.

BatchNorm that trains normalises by the statistics of a batch instead of its running statistics.
On pictures unlike those that the backbone was trained on these differ so much that a head solved
for one is worse than guessing for the other. So training starts from a second head, solved on
features of batches; the first one is that of epoch 0, which is evaluated in eval mode. It is the
solution of the frozen regime, so that no regime validates worse than that. If its weights are too
large to train with, training starts from a second head as well.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from afinar.config.train import SelectBy
from afinar.models.networks.heads import class_rows, set_class_rows
from afinar.models.networks.network import Network
from afinar.models.networks.stages import trained_norms
from afinar.training.batches import Samples
from afinar.training.checkpoint import RankedEpoch
from afinar.training.distributed import Group
from afinar.training.evaluator import Evaluator
from afinar.training.feature_cache import FeatureCache
from afinar.training.inputs import FeatureExtractor, FeatureInputs, PixelInputs
from afinar.training.linear_probe import (
    MAX_CHOICES,
    Choice,
    Features,
    LinearHead,
    Objective,
    refit_head,
    solve_heads,
    solve_smooth,
)
from afinar.training.metrics import compute_metrics
from afinar.training.rng import generator
from afinar.training.sampler import RowNumbers
from afinar.training.task import LabelledSamples
from afinar.training.timing import EpochTimer

logger = logging.getLogger(__name__)

# Multiplications per evaluation of the objective: about a second on a few cores, and on a GPU.
_MAX_PRODUCTS: Final = {"cpu": 2e10, "cuda": 4e11}
_MAX_IN_BATCHES: Final = 10_000  # samples of a split whose features in train mode are computed
_MIXED_SHARDS: Final = 8  # few enough to stay in the cache


def solver_samples(samples: int, width: int, classes: int, feature_bytes: int, device: str) -> int:
    """Return how many training samples a head is solved on.

    All of them, unless their features exceed `feature_bytes` or the time of the solver its bound.
    """
    in_memory = feature_bytes // (4 * width)
    in_time = int(_MAX_PRODUCTS.get(device, 2e10) / (width * max(2, classes)))
    return min(samples, max(2, in_memory), max(2, in_time))


@dataclass(frozen=True, kw_only=True)
class FirstHead:
    """Head that training begins with, where it is not that of epoch 0.

    If it was solved for batches, `losses` are those on validation in batches as in training: that
    of the head which training would begin with otherwise, and its own.
    """

    head: LinearHead
    losses: tuple[float, float] | None = None


class HeadStart(NamedTuple):
    """Row of epoch 0 of the history. The network has the head of that epoch.

    If the weights of that head are too large to train with, `smooth` is the head to begin with. It
    is None otherwise, and on ranks other than 0.
    """

    row: dict[str, Any]
    smooth: LinearHead | None = None


@dataclass(frozen=True, kw_only=True)
class HeadSolver:
    """Solves the head of `network` and evaluates `module`, which is the network or its classifier.

    `inputs` are those of the module. `count` is the number of training samples to solve on. `kept`
    bool [classes] marks the classes whose rows of the head come from a published model; whether
    they stay is decided by the metric `select_by`. `is_last` says that the backbone does not train
    after that. Features of pixels come from `cache` if there is one.
    """

    network: Network
    module: nn.Module
    inputs: PixelInputs | FeatureInputs
    samples: LabelledSamples
    objective: Objective
    evaluator: Evaluator
    group: Group
    count: int
    seed: int
    threads: int
    precision: torch.dtype
    kept: NDArray[np.bool_]
    is_last: bool
    select_by: SelectBy
    cache: FeatureCache | None = None

    def solve(self) -> HeadStart:
        """Set the head's weights on all workers. Return the row of epoch 0 of the history.

        The head of a published model is kept if it validates no worse than the solved one. Its new
        classes have the solved rows.
        """
        started = time.monotonic()
        timer = EpochTimer(self.group.device)
        on_train, on_validation = self._splits(timer)

        # One worker solves: rounding must not make the heads differ.
        sizes = [4, 3 * MAX_CHOICES]
        measured = torch.zeros(sum(sizes), dtype=torch.float64, device=self.group.device)
        smooth = None
        if self.group.is_rank_zero:
            solved, other = solve_heads(on_train, on_validation, self.objective)
            smooth = other if other is not solved and not self.is_last else None
            head = self._best_head(solved, on_validation)
            set_class_rows(self.network.classifier, head.weight, head.bias)
            loss_and_top1 = map(float, _loss_and_top1(head, on_train))
            choices = (astuple(choice) for choice in solved.choices)
            values = [*loss_and_top1, float(head is solved), solved.held_out, *chain(*choices)]
            measured[: len(values)] = torch.tensor(values, dtype=torch.float64)
        self.group.broadcast_parameters(self.network.classifier)
        facts, choices_of_head = torch.split(self.group.all_reduce_sum(measured), sizes)
        loss, top1, is_solved, held_out = facts.tolist()
        timings = timer.close()

        validation = self.evaluator.evaluate(self.module, self.samples.validation)
        row = {
            "epoch": 0,
            "head": "solved" if is_solved else "model",
            "choices": [
                asdict(Choice(*choice))
                for choice in choices_of_head.view(-1, 3).tolist()
                if any(choice)  # a standardised head has one
            ],
            "held_out": int(held_out),
            "train": {"loss": loss, "top1": top1},
            "val": asdict(validation),
            "ledger": timings.as_dict(),
            "seconds": round(time.monotonic() - started, 3),
        }
        return HeadStart(row, smooth)

    def first_head(self, smooth: LinearHead | None, batch_size: int) -> FirstHead | None:
        """Return, on rank 0, the head that training begins with, or None for that of epoch 0.

        `smooth` is that of `HeadStart`. `batch_size` is that of a worker in training: if BatchNorm
        trains, a head for features that it normalised by batches is returned, unless the other head
        has the lower loss on validation in such batches. Both losses are measured on at most 10,000
        samples of a split. The head of the network stays as it is.
        """
        if isinstance(self.inputs, PixelInputs) and trained_norms(self.network):
            for_batches = self._solve_for_batches(smooth, batch_size)
            if for_batches is not None:
                return for_batches
        return None if smooth is None else FirstHead(head=smooth)

    def _solve_for_batches(self, smooth: LinearHead | None, batch_size: int) -> FirstHead | None:
        on_train, on_validation = self._splits_in_batches(batch_size)
        if not self.group.is_rank_zero:
            return None

        rows = class_rows(self.network.classifier)
        before = smooth or LinearHead(rows.weight.double(), rows.bias.double(), ())
        solved = solve_smooth(on_train, on_validation, self.objective)
        loss_before, loss = (
            float(_loss_and_top1(head, on_validation)[0]) for head in (before, solved)
        )
        return FirstHead(head=solved, losses=(loss_before, loss)) if loss < loss_before else None

    def refit(self, row: dict[str, Any]) -> None:
        """Set the head's weights to those solved on training and validation, on all workers.

        The head has the weights of epoch 0, and `row` is its row of the history. A head that is
        that of a published model stays.
        """
        if row["head"] != "solved":
            if self.group.is_rank_zero:
                logger.info("note: --refit: the head is that of the model, which is kept")
            return
        on_train, on_validation = self._splits(EpochTimer(self.group.device))
        if self.group.is_rank_zero:
            rows = class_rows(self.network.classifier)
            chosen = LinearHead(
                rows.weight.double(),
                rows.bias.double(),
                tuple(Choice(**choice) for choice in row["choices"]),
                int(row["held_out"]),
            )
            both = refit_head(chosen, on_train, on_validation, self.objective)
            set_class_rows(self.network.classifier, both.weight, both.bias)
            logger.info(
                f"head refit on {len(on_train)} + {len(on_validation)} samples of training and "
                "validation; the metrics on validation are those before it"
            )
        self.group.broadcast_parameters(self.network.classifier)

    def _splits(self, timer: EpochTimer) -> tuple[Features, Features]:
        """Return the features of the training samples, of all their views, and of validation."""
        train = self._chosen(self.samples.train)
        features = self._features(np.concatenate([train.rows, self.samples.validation.rows]), timer)
        on_train = Features(features[: len(train)], self._targets(train))
        views = self._views(train, timer)
        if views:
            on_train = Features(torch.cat(views), on_train.targets.repeat(len(views)))
        return on_train, Features(features[len(train) :], self._targets(self.samples.validation))

    def _best_head(self, solved: LinearHead, on_validation: Features) -> LinearHead:
        """Return the solved head, or that of a published model if it validates no worse."""
        if not self.kept.any():
            return solved
        rows = class_rows(self.network.classifier)
        kept = torch.from_numpy(self.kept).to(solved.bias.device)
        of_model = replace(
            solved,
            weight=torch.where(kept[:, None], rows.weight.to(solved.weight), solved.weight),
            bias=torch.where(kept, rows.bias.to(solved.bias), solved.bias),
        )

        def rank(head: LinearHead) -> tuple[float, float, int]:
            logits, alone = head.logits(on_validation.values), Group(self.group.device, alone=True)
            metrics = compute_metrics(logits, on_validation.targets, self.evaluator.classes, alone)
            return RankedEpoch.of(0, asdict(metrics)).rank(self.select_by)

        return min(of_model, solved, key=rank)

    def _splits_in_batches(self, batch_size: int) -> tuple[Features, Features]:
        """Return features of samples of training and of validation, from batches of both."""
        random = generator(self.seed, 0, "head batches")
        count = min(self.count, _MAX_IN_BATCHES)
        train, validation = (
            random.permutation(len(split))[:count]
            for split in (self.samples.train, self.samples.validation)
        )
        rows = np.concatenate(
            [self.samples.train.rows[train], self.samples.validation.rows[validation]]
        )
        assert isinstance(self.inputs, PixelInputs), "the backbone trains"
        order = mixed_order(self.inputs.shard_numbers(rows), random)
        shuffled = self._extractor.compute_in_batches(rows[order], batch_size)
        features = torch.empty_like(shuffled)
        features[torch.from_numpy(order).to(features.device)] = shuffled
        targets = self._targets(self.samples.train), self._targets(self.samples.validation)
        return (
            Features(features[: len(train)], targets[0][torch.from_numpy(train)]),
            Features(features[len(train) :], targets[1][torch.from_numpy(validation)]),
        )

    def _chosen(self, samples: Samples) -> Samples:
        """Return `count` of the samples, drawn at random and in their order."""
        if self.count >= len(samples):
            return samples
        if self.group.is_rank_zero:
            logger.info(
                f"note: the head is solved on {self.count} of {len(samples)} training pictures"
            )
        drawn = generator(self.seed, 0, "head").permutation(len(samples))[: self.count]
        chosen = np.sort(drawn)
        return Samples(samples.rows[chosen], samples.targets[chosen])

    def _features(self, rows: RowNumbers, timer: EpochTimer) -> Tensor:
        if isinstance(self.inputs, FeatureInputs):
            return self.inputs.to_device(self.inputs.load(rows), rows, None, timer)
        if self.cache is not None:
            return self.cache.load(rows)
        return self._extractor.compute(rows, timer)

    @property
    def _extractor(self) -> FeatureExtractor:
        assert isinstance(self.inputs, PixelInputs), "other inputs are features"
        return FeatureExtractor(
            network=self.network,
            pixels=self.inputs,
            group=self.group,
            precision=self.precision,
            threads=self.threads,
        )

    def _views(self, train: Samples, timer: EpochTimer) -> list[Tensor]:
        """Return the features of the augmented views of training samples, none without views."""
        inputs = self.inputs
        if not isinstance(inputs, FeatureInputs):
            return []
        positions = inputs.load(train.rows)
        return [
            inputs.to_device(positions, train.rows, epoch, timer)
            for epoch in range(len(inputs.views))
        ]

    def _targets(self, samples: Samples) -> Tensor:
        return torch.from_numpy(samples.targets).to(self.group.device)


def mixed_order(shards: RowNumbers, random: np.random.Generator) -> RowNumbers:
    """Return an order of samples, given by their shards, that is random within a few shards.

    So each shard is read once, and each batch has several classes: ingest mixes them over shards.
    """
    order = np.argsort(shards, kind="stable")
    numbers = np.unique(shards)
    ends = np.searchsorted(shards[order], numbers[_MIXED_SHARDS::_MIXED_SHARDS])
    for block in np.split(order, ends):
        random.shuffle(block)  # a view: `order` is shuffled
    return order


def evaluate_head_of_model(
    module: nn.Module, samples: LabelledSamples, evaluator: Evaluator
) -> dict[str, Any]:
    """Return the row of epoch 0 of a module that begins with the head of a published model."""
    started = time.monotonic()
    timer = EpochTimer(evaluator.group.device)
    train, validation = (
        asdict(evaluator.evaluate(module, split)) for split in (samples.train, samples.validation)
    )
    return {
        "epoch": 0,
        "head": "model",
        "train": {"loss": train["loss"], "top1": train["top1"]},
        "val": validation,
        "ledger": timer.close().as_dict(),
        "seconds": round(time.monotonic() - started, 3),
    }


def _loss_and_top1(head: LinearHead, samples: Features) -> tuple[Tensor, Tensor]:
    logits = head.logits(samples.values)
    top1 = (logits.argmax(dim=1) == samples.targets).double().mean()
    return F.cross_entropy(logits, samples.targets), top1
