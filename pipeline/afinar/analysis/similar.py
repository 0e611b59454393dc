"""Find copies, leaks, wrong labels, outliers and weak clusters by the features of a dataset.

The driver of `afinar similar`. It runs in one process: the features are computed by workers, and
what is left takes seconds to minutes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from afinar.analysis.features import complete_features
from afinar.analysis.label_errors import (
    FOLDS,
    MIN_OF_CLASS,
    LabelScores,
    out_of_fold,
    score_labels,
)
from afinar.config.similar import SimilarConfig
from afinar.dataset.reader import Dataset, open_dataset
from afinar.errors import RequestError
from afinar.evaluation.clusters import WeakCluster, find_clusters, weak_clusters
from afinar.evaluation.contents import Contents, distinct_ids, find_contents
from afinar.evaluation.near_duplicates import (
    MIN_CORRELATION,
    THUMBNAIL_PX,
    Pairs,
    candidate_pairs,
    connect,
    correlate_pairs,
    groups_of,
    hash_vectors,
    luminance,
    perceptual_hashes,
)
from afinar.evaluation.neighbours import (
    Neighbours,
    estimate_s,
    far_from_all,
    nearest_neighbours,
    unit_rows,
)
from afinar.storage.open import normalize_uri
from afinar.units.executor import Executor
from afinar.units.progress import ProgressReporter, format_duration

logger = logging.getLogger(__name__)

_READ: Final = 64  # pictures whose pixels are in memory at once
_TIMED: Final = 256  # pictures from which the time of all is estimated
_MIN_LABELLED_CLASSES: Final = 2

FeatureReader = Callable[[SimilarConfig, Dataset, Executor], "FeatureMatrix"]


@dataclass(frozen=True, kw_only=True)
class FeatureMatrix:
    """Features [n, width] of the contents `sample_ids`, and what they are, for people."""

    values: NDArray[np.floating[Any]]
    description: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Confirmed pairs of contents [m, 2] with their facts [m], and the group of each content.

    `group` int64 [n] is the smallest content of each group.
    """

    pairs: Pairs
    hash_bits: NDArray[np.int64]
    distances: NDArray[np.float32]
    correlations: NDArray[np.float32]
    group: NDArray[np.int64]
    candidates: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Scores of the labels of some contents: those with a label of a class that has enough."""

    contents: NDArray[np.int64]
    scores: LabelScores
    classes: list[str]
    small_classes: list[str]
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class SimilarOutcome:
    """All results, by content. `judged` is None if labels could not be judged."""

    dataset: Dataset
    features: dict[str, str]
    contents: Contents
    neighbours: Neighbours
    duplicates: Duplicates
    judged: Judged | None
    is_outlier: NDArray[np.bool_]
    clusters: NDArray[np.int64]
    weak: list[WeakCluster]
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> NDArray[np.int64]:
        """Positions of the pairs whose pictures are in different splits."""
        first, second = self.contents.splits[self.duplicates.pairs].T
        return np.flatnonzero((first != second) & (first >= 0) & (second >= 0))

    @property
    def contradictions(self) -> NDArray[np.int64]:
        """Positions of the pairs whose pictures have different labels: one of them is wrong."""
        first, second = self.contents.labels[self.duplicates.pairs].T
        return np.flatnonzero((first != second) & (first >= 0) & (second >= 0))


def run_similar(
    config: SimilarConfig, executor: Executor, read_features: FeatureReader | None = None
) -> SimilarOutcome:
    """Compare all pictures of a dataset with each other. Nothing is written but features.

    `read_features` replaces the cache. Raises RequestError for a dataset without pictures.
    """
    dataset = open_dataset(normalize_uri(config.dataset))
    if len(dataset.index) < 2:
        raise RequestError(f"{dataset.store.root} has fewer than two pictures to compare")
    return _Analysis(config, dataset, executor, read_features or read_cached).run()


def read_cached(config: SimilarConfig, dataset: Dataset, executor: Executor) -> FeatureMatrix:
    """Read features from the cache; those that are missing are computed."""
    features = complete_features(config, dataset, executor)
    spec = features.spec
    return FeatureMatrix(
        values=features.read(distinct_ids(dataset)),
        description={
            "key": features.key,
            "backbone": spec.backbone,
            "cut": spec.cut,
            "pool": spec.pool,
        },
    )


class _Analysis:
    """One run: features, neighbours, duplicates, labels, in this order; times by step."""

    def __init__(
        self,
        config: SimilarConfig,
        dataset: Dataset,
        executor: Executor,
        read_features: FeatureReader,
    ) -> None:
        self.config, self.dataset, self.executor = config, dataset, executor
        self.read_features = read_features
        self.contents = find_contents(dataset)
        self.seconds: dict[str, float] = {}
        self.notes: list[str] = []

    def run(self) -> SimilarOutcome:
        matrix = self._timed("features", self._features)
        neighbours = self._timed("neighbours", lambda: self._neighbours(matrix.values))
        duplicates = self._timed("duplicates", lambda: self._duplicates(neighbours))
        judged = self._timed("labels", lambda: self._labels(matrix.values, duplicates.group))
        clusters = find_clusters(neighbours)
        return SimilarOutcome(
            dataset=self.dataset,
            features=matrix.description,
            contents=self.contents,
            neighbours=neighbours,
            duplicates=duplicates,
            judged=judged,
            is_outlier=far_from_all(neighbours),
            clusters=clusters,
            weak=_weak(clusters, judged, len(self.contents)),
            seconds=self.seconds,
            notes=self.notes,
        )

    def _timed(self, name: str, step: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = step()
        self.seconds[name] = round(time.perf_counter() - started, 2)
        return result

    def _features(self) -> FeatureMatrix:
        return self.read_features(self.config, self.dataset, self.executor)

    def _neighbours(self, features: NDArray[np.floating[Any]]) -> Neighbours:
        units, k = unit_rows(features), self.config.neighbours
        logger.info(
            f"similar: neighbours of {len(units)} pictures by {units.shape[1]} features: about "
            f"{format_duration(estimate_s(units, k))}"
        )
        with ProgressReporter("neighbours", len(units)) as progress:
            return nearest_neighbours(units, k, progress.add)

    def _duplicates(self, by_features: Neighbours) -> Duplicates:
        hashes, thumbnails = self._read_hashes()
        by_hash = nearest_neighbours(hash_vectors(hashes), self.config.neighbours)
        pairs = candidate_pairs(by_features, by_hash, thumbnails)
        logger.info(f"similar: {len(pairs)} candidates for near-duplicates, compared by pixels")
        with ProgressReporter("candidates", len(pairs), "pairs") as progress:
            correlations = correlate_pairs(pairs, self._read, progress.add)

        is_copy = correlations >= MIN_CORRELATION
        confirmed = pairs[is_copy]
        bits = np.bitwise_count(np.bitwise_xor(*hashes[confirmed].T)).astype(np.int64)
        return Duplicates(
            pairs=confirmed,
            hash_bits=bits,
            distances=_pair_distances(by_features, confirmed),
            correlations=correlations[is_copy],
            group=connect(len(self.contents), confirmed),
            candidates=len(pairs),
        )

    def _read(self, contents: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.dataset.read(self.contents.rows[contents])

    def _read_hashes(self) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
        """Return the perceptual hash and the thumbnail of each content, from its stored pixels."""
        count = len(self.contents)
        hashes = np.empty(count, dtype=np.uint64)
        thumbnails = np.empty((count, THUMBNAIL_PX, THUMBNAIL_PX), dtype=np.uint8)
        # Shard by shard: a remote one is fetched once.
        rows = self.contents.rows
        order = np.lexsort((rows, self.dataset.shard_numbers[rows]))
        started = time.perf_counter()
        with ProgressReporter("hashes", count) as progress:
            for start in range(0, count, _READ):
                block = order[start : start + _READ]
                images = self._read(block)
                hashes[block] = perceptual_hashes(images)
                thumbnails[block] = np.rint(luminance(images, THUMBNAIL_PX)).astype(np.uint8)
                progress.add(len(block))
                if start <= _TIMED < start + _READ:
                    left_s = (time.perf_counter() - started) / _TIMED * count
                    logger.info(
                        f"similar: hashes of {count} pictures: about {format_duration(left_s)}"
                    )
        return hashes, thumbnails

    def _labels(
        self, features: NDArray[np.floating[Any]], groups: NDArray[np.int64]
    ) -> Judged | None:
        labels, classes = self.contents.labels, self.dataset.classes
        counts = np.bincount(labels[labels >= 0], minlength=len(classes))
        kept = np.flatnonzero(counts >= MIN_OF_CLASS)
        small = [
            classes[number] for number in np.flatnonzero((counts > 0) & (counts < MIN_OF_CLASS))
        ]
        if small:
            self.notes.append(
                f"labels of {len(small)} classes with fewer than {MIN_OF_CLASS} pictures are not "
                f"judged: {', '.join(small[:10])}"
            )
        if len(kept) < _MIN_LABELLED_CLASSES:
            self.notes.append(
                f"labels are not judged: that needs two classes with {MIN_OF_CLASS} pictures each"
            )
            return None

        contents = np.flatnonzero(np.isin(labels, kept))
        targets = np.searchsorted(kept, labels[contents])
        logger.info(f"similar: labels of {len(contents)} pictures, in {FOLDS} folds")
        with ProgressReporter("labels", len(contents)) as progress:
            # A copy of the features only if some are left out: they take most of the memory.
            judged = features if len(contents) == len(features) else features[contents]
            probabilities = out_of_fold(judged, targets, groups[contents], len(kept), progress.add)
        scores = score_labels(probabilities, targets)
        return Judged(
            contents=contents,
            scores=scores,
            classes=[classes[number] for number in kept],
            small_classes=small,
            accuracy=float((scores.predicted == targets).mean()),
        )


def _pair_distances(neighbours: Neighbours, pairs: Pairs) -> NDArray[np.float32]:
    """Return the distance of each pair by features; NaN if neither is a neighbour of the other."""
    found = np.full(len(pairs), np.nan, dtype=np.float32)
    for first, second in (pairs.T, pairs[:, ::-1].T):
        is_here = neighbours.indices[first] == second[:, None]
        rows = np.flatnonzero(is_here.any(axis=1))
        found[rows] = neighbours.distances[first[rows], is_here[rows].argmax(axis=1)]
    return found


def _weak(clusters: NDArray[np.int64], judged: Judged | None, contents: int) -> list[WeakCluster]:
    if judged is None:
        return []
    is_judged, is_hit = np.zeros(contents, dtype=np.bool_), np.zeros(contents, dtype=np.bool_)
    is_judged[judged.contents] = True
    # A picture whose other class is more probable than its label is an error of the head.
    is_hit[judged.contents] = judged.scores.margin < 0
    return weak_clusters(clusters, is_judged, is_hit)


def merged_groups(outcome: SimilarOutcome) -> list[str | None]:
    """Return the group of each index row for the next ingest, None for a row without one.

    Duplicates are in one group. Groups that the dataset has already are kept, and joined where a
    copy connects them; the joined group has the name that comes first.
    """
    contents, index = outcome.contents, outcome.dataset.index
    names = index.column("group").to_pylist()
    first_of_group: dict[str, int] = {}
    links = [outcome.duplicates.pairs]
    for row, name in enumerate(names):
        if name is not None:
            content = int(contents.of_row[row])
            links.append(np.array([[first_of_group.setdefault(name, content), content]]))
    group = connect(len(contents), np.concatenate(links))

    given: dict[int, str] = {}
    for row, name in enumerate(names):
        if name is not None:
            key = int(group[contents.of_row[row]])
            given[key] = min(name, given.get(key, name))
    ids = index.column("sample_id").take(pa.array(contents.rows)).to_pylist()
    for members in groups_of(outcome.duplicates.group):
        key = int(group[members[0]])
        given.setdefault(key, f"similar-{min(ids[member] for member in members)[:16]}")
    return [given.get(int(key)) for key in group[contents.of_row]]
