"""Random numbers that are functions of (seed, epoch, sample), not of batches or workers."""

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
    """Return the first 64 bits of each sample_id (hexadecimal text) as uint64 [n].

    Example: "00000000000000ff9c…" becomes 255.
    """
    digits = pc.utf8_slice_codeunits(ids, 0, _KEY_DIGITS).cast(pa.binary(_KEY_DIGITS))

    # The data buffer of a fixed-size binary array holds its values back to back. Reading it
    # decodes a million ids at once instead of making a Python string of each.
    text = b"".join(
        bytes(chunk.buffers()[1])[_KEY_DIGITS * chunk.offset :][: _KEY_DIGITS * len(chunk)]
        for chunk in digits.chunks
    )
    return np.frombuffer(bytes.fromhex(text.decode()), dtype=">u8").astype(np.uint64)


def uniform(keys: Keys, seed: int, epoch: int, name: str) -> NDArray[np.float64]:
    """Return one number in [0, 1) per key, a function of (key, seed, epoch, name) alone.

    This is a counter-based generator: it has no state, so any worker computes the number of any
    sample, in any order. A hash of (name, seed, epoch) gives two 64-bit salts, which are mixed into
    each key by the finalizer of SplitMix64 (Steele, Lea and Flood 2014,
    doi 10.1145/2714064.2660195). The keys are hashes already, so two rounds are enough.

    Example: for name "flip", seed 0, epoch 0 the key 255 gives 0.2981 and the key 256 gives 0.6409;
    in epoch 1 the key 255 gives 0.9788.
    """
    salt = hashlib.sha256(f"{name}:{seed}:{epoch}".encode()).digest()
    low, high = (np.uint64(int.from_bytes(salt[start : start + 8], "big")) for start in (0, 8))
    mixed = _mix(_mix(keys ^ low) ^ high)

    # The upper 53 bits, because a float64 holds 53: every value is k / 2^53.
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def repeat_keys(keys: Keys, repeats: NDArray[np.int64]) -> Keys:
    """Return the keys of samples that an epoch uses for the `repeats`-th time, counted from 0.

    The first use has the sample's own key. Others add a multiple of 2^64 / golden ratio, modulo
    2^64, as SplitMix64 does.
    """
    return keys + repeats.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def _mix(keys: Keys) -> Keys:
    """Apply the finalizer of SplitMix64: each input bit changes about half of the output bits."""
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = keys ^ (keys >> np.uint64(31))
    return mixed


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """Return a generator for draws that concern a whole epoch, such as the order of its samples."""
    key = int.from_bytes(hashlib.sha256(f"{name}:{seed}:{epoch}".encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the torch seed of one worker's step, for dropout.

    Seeding every step makes it unnecessary to save the state of a generator in a checkpoint.
    """
    digest = hashlib.sha256(f"step:{seed}:{step}:{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1  # torch takes seeds below 2^63
