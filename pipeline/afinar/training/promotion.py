"""Choice of the champion after a training: is the new version better on comparable pictures?"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow.compute as pc
import torch

from afinar.config.train import Promote
from afinar.dataset.reader import open_dataset
from afinar.errors import AfinarError, ShortfallError
from afinar.evaluation.intervals import wilson
from afinar.inference.predictor import load_predictor
from afinar.models.registry.aliases import count_promotions, promote, promotions
from afinar.models.registry.versions import ModelVersion, find_champion, get_model
from afinar.storage.store import Store

logger = logging.getLogger(__name__)

_ATTEMPTS: Final = 5  # each follows one more promotion by another job
_BATCH: Final = 32


@dataclass(frozen=True, kw_only=True)
class ChampionChoice:
    """The champion after a training: its number, None if there is none, and the reason."""

    is_promoted: bool
    champion: int | None
    why: str


@dataclass(frozen=True)
class Rival:
    """The champion as it was found, with its validation accuracy on the new version's pictures.

    `top1` is None if the two cannot be compared; `reason` then says why. `loss` is None unless it
    is that of the same pictures.
    """

    number: int
    top1: float | None
    loss: float | None = None
    reason: str = ""


def choose_champion(store: Store, version: ModelVersion, mode: Promote) -> ChampionChoice:
    """Promote a new version if `mode` asks for it and record the reason.

    Of two trainings at once the one that finds the champion moved compares again with that one.
    """
    for _ in range(_ATTEMPTS):
        after = count_promotions(store)
        number = find_champion(store)
        if number == version.version and after:  # an earlier attempt of this job promoted it
            why = promotions(store)[-1].why
            return ChampionChoice(is_promoted=True, champion=number, why=why)

        choice = decide(mode, version, number, lambda: find_rival(store, version))
        if not choice.is_promoted:
            return choice
        try:
            promote(store, version.version, choice.why, after=after)
        except ShortfallError as error:
            logger.info(f"{error}; comparing again")
            continue
        return choice
    raise ShortfallError(
        f"other jobs moved the champion of {store.root} {_ATTEMPTS} times: promote version "
        f"{version.version} with `afinar models {store.root} promote {version.version}` if it must "
        "replace it"
    )


def decide(
    mode: Promote,
    version: ModelVersion,
    champion: int | None,
    find: Callable[[], Rival],
) -> ChampionChoice:
    """Return whether a version replaces the champion, and why.

    `find` compares the two; it is called only if the answer depends on it.
    """

    def stays(why: str) -> ChampionChoice:
        return ChampionChoice(is_promoted=False, champion=champion, why=why)

    def moves(why: str) -> ChampionChoice:
        return ChampionChoice(is_promoted=True, champion=version.version, why=why)

    if mode == "never":
        return stays("--promote never")
    if mode == "always":
        return moves("--promote always")

    metrics = version.metrics["val"]
    top1, samples = metrics["top1"], metrics["samples"]
    interval = wilson(round(top1 * samples), samples)
    guess = f"always “{metrics['largest_class']}” gives {metrics['largest_share']:.1%}"
    if interval.low <= metrics["largest_share"]:
        return stays(
            f"version {version.version} is not shown to beat guessing: validation {top1:.1%} "
            f"({interval.low:.1%} to {interval.high:.1%}), {guess}"
        )
    if champion is None:
        return moves(f"no champion before it; validation {top1:.1%}, {guess}")

    rival = find()
    if rival.top1 is None:
        return stays(
            f"version {version.version} cannot be compared with version {champion}: "
            f"{rival.reason}; to use it, run `afinar models MODELS promote {version.version}`"
        )
    compared = (
        f"validation {top1:.1%}, version {champion} {rival.top1:.1%} on the same {samples} pictures"
    )
    has_lower_loss = rival.loss is not None and metrics["loss"] < rival.loss
    if top1 == rival.top1 and rival.loss is not None:
        compared += f", loss {metrics['loss']:.3f} against {rival.loss:.3f}"
    if top1 > rival.top1 or (top1 == rival.top1 and has_lower_loss):
        return moves(compared)
    return stays(f"version {version.version} is not better: {compared}")


def find_rival(store: Store, version: ModelVersion) -> Rival:
    """Return the champion's accuracy on the validation pictures of a new version.

    The record has it if both were trained on one version of one dataset. Otherwise the champion
    predicts those pictures now. A picture stays in its split from version to version, so it has not
    learned them.
    """
    number = find_champion(store)
    assert number is not None, "there is a champion to compare with"
    champion = get_model(store, number)
    metrics = champion.metrics.get("val") or {}
    if champion.lineage.get("dataset") == version.lineage["dataset"] and "top1" in metrics:
        return Rival(number, metrics["top1"], metrics.get("loss"))
    try:
        return _predict_again(store, champion, version)
    except AfinarError as error:
        return Rival(number, None, reason=str(error))


def _predict_again(store: Store, champion: ModelVersion, version: ModelVersion) -> Rival:
    trained_on = version.lineage["dataset"]
    dataset = open_dataset(trained_on["uri"], version=trained_on["version"])
    if replace(champion.stored_view, store=dataset.view.store) != dataset.view:
        return Rival(champion.version, None, reason="it takes pictures of another size or fit")

    index = dataset.index
    is_validation = pc.equal(index.column("split"), "validation")
    is_chosen = pc.and_(pc.fill_null(is_validation, False), pc.is_valid(index.column("label")))
    rows = np.flatnonzero(is_chosen.to_numpy(zero_copy_only=False))
    logger.info(
        f"comparing with the champion, version {champion.version}, on {len(rows)} validation "
        "pictures"
    )
    labels = index.column("label").to_pylist()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(store, champion, device)
    hits = 0
    for start in range(0, len(rows), _BATCH):
        block = rows[start : start + _BATCH]
        predicted = predictor(dataset.read(block)).argmax(axis=1)
        hits += sum(
            predictor.classes[number] == labels[row]
            for number, row in zip(predicted, block, strict=True)
        )
    return Rival(champion.version, hits / len(rows))
