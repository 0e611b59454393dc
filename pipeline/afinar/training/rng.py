"""Random numbers that belong to a sample: no batch, order or number of workers changes them."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_KEY_DIGITS: Final = 16


def sample_keys(ids: pa.ChunkedArray) -> Keys:
    """uint64 [n]: the first 64 bits of each sample_id (hex)."""
    digits = pc.utf8_slice_codeunits(ids, 0, _KEY_DIGITS).cast(pa.binary(_KEY_DIGITS))
    text = b"".join(
        bytes(chunk.buffers()[1])[_KEY_DIGITS * chunk.offset :][: _KEY_DIGITS * len(chunk)]
        for chunk in digits.chunks
    )
    return np.frombuffer(bytes.fromhex(text.decode()), dtype=">u8").astype(np.uint64)


def uniform(keys: Keys, seed: int, epoch: int, what: str) -> NDArray[np.float64]:
    """One number in [0, 1) per key: a function of (key, seed, epoch, what) alone.

    The keys, which are hashes already, are mixed with a hash of the rest by the finaliser of SplitMix64
    (Steele, Lea and Flood 2014, doi 10.1145/2714064.2660195).
    """
    salt = hashlib.sha256(f"{what}:{seed}:{epoch}".encode()).digest()
    low, high = (np.uint64(int.from_bytes(salt[start : start + 8], "big")) for start in (0, 8))
    mixed = _mix(_mix(keys ^ low) ^ high)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: Keys) -> Keys:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = words ^ (words >> np.uint64(31))
    return mixed


def generator(seed: int, epoch: int, what: str) -> np.random.Generator:
    """A generator for what concerns an epoch as a whole."""
    key = int.from_bytes(hashlib.sha256(f"{what}:{seed}:{epoch}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Seed of what a network itself draws in one step (dropout): no generator's state need be kept to resume."""
    return (
        int.from_bytes(hashlib.sha256(f"step:{seed}:{step}:{rank}".encode()).digest()[:8], "big")
        >> 1
    )
