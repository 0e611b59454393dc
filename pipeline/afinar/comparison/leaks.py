"""Near-duplicates of test pictures in other splits, by features that a comparison has anyway.

A cheaper search than that of `afinar similar`: from test pictures alone, with candidates by
features alone, and bounded in time.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.errors import ForbiddenError, NotFoundError
from afinar.evaluation.contents import distinct_ids, find_contents
from afinar.evaluation.near_duplicates import (
    MAX_RELATIVE_DISTANCE,
    MIN_CORRELATION,
    Pairs,
    correlate_pairs,
)
from afinar.evaluation.neighbours import unit_rows
from afinar.features.manifest import open_features_store
from afinar.features.reader import Features
from afinar.sources.entry import SPLITS
from afinar.storage.records import read_record

_NEIGHBOURS: Final = 10
_MAX_PRODUCTS: Final = 5e11  # multiplications of the search: half a minute of one core
_MAX_PAIRS: Final = 2000  # candidates whose pixels are compared, the nearest ones: seconds
_BLOCK: Final = 1024


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """Counts of test pictures: all, those searched, and those with a copy in another split."""

    test: int
    searched: int
    leaked: int

    def describe(self) -> str:
        """Return a sentence, "" if no leak was found."""
        if not self.leaked:
            return ""
        share = f" of {self.searched} that were searched" if self.searched < self.test else ""
        return (
            f"{self.leaked} of {self.test} test pictures{share} have a near-duplicate in train or "
            "validation, so that accuracies on test are too high: `afinar similar` lists them and "
            "writes groups.csv for `afinar ingest --group`"
        )


def stored_leaks(dataset: Dataset, features: Features) -> Leaks:
    """Return the leaks of this version of the dataset; search only if nobody has before.

    The search reads pixels of candidates, and its answer never changes: it is kept beside the
    features as `leaks/<version>.json`.
    """
    store = open_features_store(dataset.store.root, features.key)
    name = f"leaks/{dataset.manifest.version}.json"
    with suppress(NotFoundError):
        return read_record(store, name, Leaks)

    leaks = find_leaks(dataset, features)
    with suppress(ForbiddenError):  # a dataset that may only be read is searched again next time
        store.put_if_absent(name, json.dumps(asdict(leaks)).encode())
    return leaks


def find_leaks(dataset: Dataset, features: Features) -> Leaks:
    """Search for copies of test pictures in the other splits; see `near_duplicates`.

    All pictures of the dataset must have features. Of a large dataset some test pictures are
    searched, chosen by their content.
    """
    contents, test_split = find_contents(dataset), SPLITS.index("test")
    test = np.flatnonzero(contents.splits == test_split)
    others = np.flatnonzero((contents.splits >= 0) & (contents.splits != test_split))
    ids = distinct_ids(dataset)
    values = features.read(ids)
    budget = int(_MAX_PRODUCTS / max(1, len(others) * values.shape[1]))
    names = ids.take(test).to_numpy()
    searched = test[np.argsort(names)[:budget]]

    candidates = _candidates(unit_rows(values), searched, others)
    pairs, positions = candidates[:_MAX_PAIRS], candidates[:_MAX_PAIRS, 0]
    correlations = correlate_pairs(pairs, lambda rows: dataset.read(contents.rows[rows]))
    leaked = np.unique(positions[correlations >= MIN_CORRELATION])
    return Leaks(test=len(test), searched=len(searched), leaked=len(leaked))


def _candidates(units: torch.Tensor, test: NDArray[np.int64], others: NDArray[np.int64]) -> Pairs:
    """Return pairs (test, other) that are nearer than others are, the nearest first."""
    k = min(_NEIGHBOURS, len(others))
    if not k or not len(test):
        return np.empty((0, 2), dtype=np.int64)
    columns, found, similarities = units[torch.from_numpy(others)], [], []
    for start in range(0, len(test), _BLOCK):
        block = units[torch.from_numpy(test[start : start + _BLOCK])] @ columns.T
        top = block.topk(k, dim=1)
        similarities.append(top.values)
        found.append(top.indices)
    # Of unit vectors, distance² is 2 - 2 * cosine.
    distances = (2 - 2 * torch.cat(similarities)).clamp_min(0).sqrt().numpy()
    limit = MAX_RELATIVE_DISTANCE * float(np.median(distances[:, -1]))
    rows, places = np.nonzero(distances <= limit)
    order = np.argsort(distances[rows, places], kind="stable")
    near = torch.cat(found).numpy()[rows, places]
    return np.stack([test[rows], others[near]], axis=1)[order].astype(np.int64)
