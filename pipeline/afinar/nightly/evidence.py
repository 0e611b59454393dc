"""Evidence for the gate, from the records and test predictions of candidate and champion.

**Which pictures decide.** Every test picture has a role by its content: of three, two are for gates
and one is for the published score, which no gate ever uses. A frozen test set holds the pictures
for gates at the time when it was drawn. Those that were added since are the newest pictures; they
are compared, too, but only to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.evaluation.gate import Change, Evidence, Paired
from afinar.evaluation.intervals import Interval, wilson
from afinar.models.registry.versions import ModelVersion
from afinar.storage.store import Store

_SCORE_SHARE: Final = 3  # one of three test pictures is for the published score


def is_for_score(sample_id: str) -> bool:
    """Return True for a test picture that no gate uses."""
    return int(sample_id[:8], 16) % _SCORE_SHARE == 0


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers of a model for test pictures: sample id → predicted class; and the true labels."""

    predicted: Mapping[str, str]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, run: EvaluatedRun) -> Answers:
        """Return the answers of a published run."""
        columns = (
            run.test.column(name).to_pylist() for name in ("sample_id", "predicted", "label")
        )
        ids, predicted, labels = columns
        return cls(
            predicted=dict(zip(ids, predicted, strict=True)),
            labels=dict(zip(ids, labels, strict=True)),
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
    def classes(self) -> dict[str, Paired]:
        """The pictures of the frozen test set by their class."""
        by_class: dict[str, set[str]] = {}
        for name in self.frozen & self.candidate.labels.keys():
            by_class.setdefault(self.candidate.labels[name], set()).add(name)
        return {
            label: self._paired(ids)
            for label, ids in sorted(by_class.items())
            if label in self.common_classes
        }

    def _paired(self, ids: Iterable[str]) -> Paired:
        """Count the pictures that both have answered, whose class both know.

        The label is the candidate's: it was trained later, on corrected labels.
        """
        pictures = candidate_only = champion_only = 0
        for name in ids:
            label = self.candidate.labels.get(name)
            if label not in self.common_classes or name not in self.champion.predicted:
                continue
            candidate_right = self.candidate.predicted[name] == label
            champion_right = self.champion.predicted[name] == label
            pictures += 1
            candidate_only += candidate_right and not champion_right
            champion_only += champion_right and not candidate_right
        return Paired(pictures=pictures, candidate_only=candidate_only, champion_only=champion_only)


def compare(
    store: Store,
    candidate: ModelVersion,
    champion: ModelVersion,
    frozen: set[str],
    watched: pa.Table | None,
) -> Comparison:
    """Compare two versions on their common test pictures.

    `watched` has predictions of the champion for pictures that were added after it was trained:
    columns sample_id and label.
    """
    answers = Answers.of(read_run(store, champion))
    if watched is not None:
        ids, labels = (watched.column(name).to_pylist() for name in ("sample_id", "label"))
        later = dict(zip(ids, labels, strict=True))
        answers = Answers(predicted={**later, **answers.predicted}, labels=answers.labels)
    return Comparison(
        candidate=Answers.of(read_run(store, candidate)),
        champion=answers,
        frozen=frozen,
        common_classes=set(candidate.classes) & set(champion.classes),
    )


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Pictures that the labelling worker labelled with the candidate, and with the champion.

    `agreement` is the share of equal answers. `forward_s` are seconds of the forward pass per
    picture. Both are None without a champion.
    """

    labelled: int
    agreement: float | None
    forward_s: Change | None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Rehearsal:
        """Return the rehearsal of a step's record."""
        forward = record["forward_s"]
        return cls(
            labelled=record["labelled"],
            agreement=record["agreement"],
            forward_s=None if forward is None else Change(**forward),
        )


def gather_evidence(
    candidate: ModelVersion,
    champion: ModelVersion | None,
    comparison: Comparison | None,
    decision: int,
    rehearsal: Rehearsal,
    new_pictures: int | None,
    beats_largest: bool | None,
) -> Evidence:
    """Return the evidence on a candidate."""
    if champion is None or comparison is None:
        return Evidence(
            has_champion=False,
            beats_largest=beats_largest,
            rehearsed=rehearsal.labelled > 0,
        )
    return Evidence(
        has_champion=True,
        decision=decision,
        test=comparison.test,
        newest=comparison.newest,
        classes=comparison.classes,
        missing_classes=tuple(sorted(set(champion.classes) - set(candidate.classes))),
        new_classes=tuple(sorted(set(candidate.classes) - set(champion.classes))),
        loss=_losses(champion, candidate),
        seconds_per_picture=rehearsal.forward_s,
        weight_bytes=Change(champion=champion.weights.bytes, candidate=candidate.weights.bytes),
        new_pictures=new_pictures,
        agreement=rehearsal.agreement,
        rehearsed=rehearsal.labelled > 0,
    )


def beats_largest_class(run: EvaluatedRun) -> bool | None:
    """Return whether the accuracy exceeds that of always answering the largest class, certainly.

    None without test pictures.
    """
    if not len(run.test):
        return None
    return run.accuracy.low > run.largest_class[1]


def published_score(answers: Answers) -> Interval | None:
    """Return the accuracy on test pictures that no gate uses, None if there are none."""
    ids = [name for name in answers.predicted if is_for_score(name)]
    if not ids:
        return None
    return wilson(sum(answers.predicted[name] == answers.labels[name] for name in ids), len(ids))


def _losses(champion: ModelVersion, candidate: ModelVersion) -> Change | None:
    losses = []
    for version in (champion, candidate):
        calibrated = (version.metrics.get("test") or {}).get("calibrated") or {}
        loss = calibrated.get("loss")
        if not isinstance(loss, float):
            return None
        losses.append(loss)
    return Change(champion=losses[0], candidate=losses[1])
