"""Which split a sample belongs to: a pure function of its content and a seed."""

from __future__ import annotations

import hashlib

from pipeline.dataset.schema import SPLITS


def assign_split(key: str, shares: tuple[float, float, float], seed: int) -> str:
    """Split of the sample (or group) `key`.

    The key and the seed are hashed to a number in [0, 1) that is compared with the cumulated shares, so a
    sample keeps its split whatever is added, removed or renamed around it.
    """
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    train, validation, _ = shares
    if position < train:
        return SPLITS[0]
    return SPLITS[1] if position < train + validation else SPLITS[2]
