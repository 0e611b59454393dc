"""Evidence for the gate, from the answers of candidate and champion for the same test pictures.

**Which pictures decide.** Every test picture has a role by its content: of three, two are for gates
and one is for the published score, which no gate ever uses. A frozen test set holds the pictures
for gates at the time when it was drawn. Those that were added since are the newest pictures; they
are compared, too, but only to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from afinar.errors import NotFoundError
from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.evaluation.gate import Change, Evidence, Paired
from afinar.evaluation.intervals import Interval, wilson
from afinar.models.registry.versions import ModelVersion
from afinar.storage.store import Store

_SCORE_SHARE: Final = 3  # one of three test pictures is for the published score
_SMALLEST: Final = 1e-6  # probability in a logarithm


def is_for_score(sample_id: str) -> bool:
    """Return True for a test picture that no gate uses."""
    return int(sample_id[:8], 16) % _SCORE_SHARE == 0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of a model for test pictures by sample id.

    `predicted` are classes, `scores` their calibrated probabilities. `labels` are the true classes,
    empty for answers of the labelling worker.
    """

    predicted: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, version: ModelVersion) -> Answers:
        """Return the answers of a version's own evaluation, none if it was made elsewhere."""
        if not version.lineage.get("run"):
            return cls()
        try:
            test = read_run(store, version).test
        except NotFoundError:  # its run folder was deleted
            return cls()
        ids = test.column("sample_id").to_pylist()
        predicted, scores, labels = (
            dict(zip(ids, test.column(name).to_pylist(), strict=True))
            for name in ("predicted", "score", "label")
        )
        return cls(predicted=predicted, scores=scores, labels=labels)

    @classmethod
    def of_predictions(cls, table: pa.Table | None) -> Answers:
        """Return the answers in a table of predictions, none for None."""
        if table is None:
            return cls()
        ids = table.column("sample_id").to_pylist()
        predicted, scores = (
            dict(zip(ids, table.column(name).to_pylist(), strict=True))
            for name in ("label", "score")
        )
        return cls(predicted=predicted, scores=scores)

    def with_more(self, others: Answers) -> Answers:
        """Return both together; where both have an answer, the one of `self` counts."""
        return Answers(
            predicted={**others.predicted, **self.predicted},
            scores={**others.scores, **self.scores},
            labels={**others.labels, **self.labels},
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Answers of candidate and champion for the same test pictures, by role of the pictures."""

    candidate: Answers
    champion: Answers
    frozen: set[str]
    common_classes: set[str]

    @property
    def test(self) -> Paired:
        """The pictures of the frozen test set."""
        return self._paired(self.frozen)

    @property
    def newest(self) -> Paired:
        """Pictures for gates that were added after the set was frozen."""
        ids = self.candidate.predicted.keys() - self.frozen
        return self._paired(name for name in ids if not is_for_score(name))

    @property
    def loss(self) -> Change | None:
        """Loss of the confidence of both on the frozen test set, None without pictures.

        Of an answer with the probability p it is -log p if the answer is right and -log (1 - p) if
        it is wrong: a proper score, least if the probabilities are calibrated and sharp.
        """
        labels = self._common(self.frozen)
        if not labels:
            return None
        return Change(
            champion=_confidence_loss(self.champion, labels),
            candidate=_confidence_loss(self.candidate, labels),
        )

    @property
    def classes(self) -> dict[str, Paired]:
        """The pictures of the frozen test set by their class."""
        by_class: dict[str, set[str]] = {}
        for name, label in self._common(self.frozen).items():
            by_class.setdefault(label, set()).add(name)
        return {label: self._paired(ids) for label, ids in sorted(by_class.items())}

    def _paired(self, ids: Iterable[str]) -> Paired:
        """Count the pictures that both have answered, by which of them is right."""
        labels = self._common(ids)
        candidate_only = champion_only = 0
        for name, label in labels.items():
            candidate_right = self.candidate.predicted[name] == label
            champion_right = self.champion.predicted[name] == label
            candidate_only += candidate_right and not champion_right
            champion_only += champion_right and not candidate_right
        return Paired(
            pictures=len(labels), candidate_only=candidate_only, champion_only=champion_only
        )

    def _common(self, ids: Iterable[str]) -> dict[str, str]:
        """Return the labels of the pictures that both have answered, whose class both know.

        The label is the candidate's: it was trained later, on corrected labels.
        """
        labels = ((name, self.candidate.labels.get(name)) for name in ids)
        return {
            name: label
            for name, label in labels
            if label in self.common_classes and name in self.champion.predicted
        }


def _confidence_loss(answers: Answers, labels: Mapping[str, str]) -> float:
    losses = []
    for name, label in labels.items():
        score = answers.scores[name]
        probability = score if answers.predicted[name] == label else 1 - score
        losses.append(-math.log(max(probability, _SMALLEST)))
    return math.fsum(losses) / len(losses)


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Pictures that the labelling worker labelled with the candidate, and with the champion.

    `complete` says whether the candidate labelled every picture that can be used. `agreement` is
    the share of equal answers. `forward_s` are seconds of the forward pass per picture. Both are
    None without a champion.
    """

    complete: bool
    agreement: float | None
    forward_s: Change | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Rehearsal | None:
        """Return the rehearsal of a step's record, None if it was skipped."""
        if "skipped" in record:
            return None
        forward, labelled = record["forward_s"], record["labelled"]
        return cls(
            complete=labelled > 0 and labelled >= record["usable"],
            agreement=record["agreement"],
            forward_s=None if forward is None else Change(**forward),
        )


def gather_evidence(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    comparison: Comparison | None,
    decision: int,
    rehearsal: Rehearsal | None,
    new_pictures: int | None,
    beats_largest: bool | None,
) -> Evidence:
    """Return the evidence on a candidate.

    `comparison` is None if the champion has no answers, `rehearsal` if there was none.
    """
    rehearsed = rehearsal.complete if rehearsal else None
    if champion is None:
        return Evidence(
            has_champion=False,
            beats_largest=beats_largest,
            rehearsed=rehearsed,
        )
    return Evidence(
        has_champion=True,
        decision=decision,
        test=comparison.test if comparison else None,
        newest=comparison.newest if comparison else None,
        classes=comparison.classes if comparison else {},
        missing_classes=tuple(sorted(set(champion.classes) - set(candidate.classes))),
        new_classes=tuple(sorted(set(candidate.classes) - set(champion.classes))),
        loss=comparison.loss if comparison else None,
        seconds_per_picture=rehearsal.forward_s if rehearsal else None,
        weight_bytes=Change(champion=champion.weights.bytes, candidate=candidate.weights.bytes),
        new_pictures=new_pictures,
        agreement=rehearsal.agreement if rehearsal else None,
        rehearsed=rehearsed,
    )


def beats_largest_class(run: EvaluatedRun) -> bool | None:
    """Return whether the accuracy exceeds that of always answering the largest class, certainly.

    None without test pictures.
    """
    if not len(run.test):
        return None
    return run.accuracy.low > run.largest_class[1]


def published_score(answers: Answers, labels: Mapping[str, str]) -> Interval | None:
    """Return the accuracy on test pictures that no gate uses, None if there are none.

    `labels` are the true classes of today's test pictures.
    """
    ids = [name for name in labels if is_for_score(name) and name in answers.predicted]
    if not ids:
        return None
    return wilson(sum(answers.predicted[name] == labels[name] for name in ids), len(ids))
