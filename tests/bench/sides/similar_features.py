"""Time and memory of `similar` on synthetic features, and of brute force in NumPy.

python -m tests.bench.sides.similar_features '{"rows": 200000, "width": 512}'
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from afinar.analysis.label_errors import out_of_fold, score_labels
from afinar.evaluation.clusters import find_clusters
from afinar.evaluation.near_duplicates import candidate_pairs, hash_vectors
from afinar.evaluation.neighbours import (
    estimate_s,
    far_from_all,
    nearest_neighbours,
    unit_rows,
)

K = 10
CLASSES = 10
SAMPLED = 256  # rows that brute force looks at: its time is proportional to them


def main(rows: int, width: int) -> dict[str, Any]:
    """Run all steps but those that read pictures; return seconds of the processor and peak memory.

    Seconds of the processor, because other processes of a shared machine do not change them much.
    """
    rng = np.random.default_rng(0)
    targets = rng.integers(0, CLASSES, rows)
    centres = rng.normal(size=(CLASSES, width)).astype(np.float32)
    features = np.empty((rows, width), dtype=np.float32)  # what the cache's reader returns
    for start in range(0, rows, 4096):
        block = slice(start, start + 4096)
        noise = rng.normal(size=features[block].shape).astype(np.float32)
        features[block] = centres[targets[block]] + 2 * noise
    hashes = rng.integers(0, 2**64, rows, dtype=np.uint64)
    thumbnails = rng.integers(0, 256, (rows, 16, 16)).astype(np.uint8)

    seconds: dict[str, float] = {}

    def timed(name: str, step: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = step()
        seconds[name] = time.process_time() - started
        print(name, f"{seconds[name]:.1f} s", file=sys.stderr, flush=True)
        return result

    units = unit_rows(features)
    estimate = timed("estimate", lambda: estimate_s(units, K))
    found = timed("neighbours", lambda: nearest_neighbours(units, K))
    del units  # as in the driver
    by_hash = timed("hashes", lambda: nearest_neighbours(hash_vectors(hashes), K))
    timed("candidates", lambda: candidate_pairs(found, by_hash, thumbnails))
    timed("clusters", lambda: (find_clusters(found), far_from_all(found)))
    probabilities = timed(
        "labels", lambda: out_of_fold(features, targets, np.arange(rows), CLASSES)
    )
    timed("ranking", lambda: score_labels(probabilities, targets))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    # Afterwards, so that its memory is not measured.
    sample = np.arange(0, rows, max(1, rows // SAMPLED))[:SAMPLED]
    units = unit_rows(features)
    started = time.process_time()
    order = _brute_force(units.numpy(), sample)
    seconds["brute force"] = (time.process_time() - started) / len(sample) * rows
    same = np.mean([set(a) == set(b) for a, b in zip(order, found.indices[sample], strict=True)])
    return {
        "seconds": seconds,
        "estimate_s": estimate,
        "peak_bytes": peak,
        "same": float(same),
    }


def _brute_force(units: Any, sample: Any) -> list[Any]:
    """Return the k nearest rows of some rows, from whole rows of the matrix of distances."""
    found: list[Any] = []
    for start in range(0, len(sample), 64):
        rows = sample[start : start + 64]
        distances = 2 - 2 * units[rows] @ units.T
        distances[np.arange(len(rows)), rows] = np.inf
        found.extend(np.argpartition(distances, K, axis=1)[:, :K])
    return found


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
