"""Random numbers per sample."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from afinar.training.rng import sample_keys, uniform


def test_uniform_is_evenly_spread_and_depends_on_key_seed_epoch_and_name_only() -> None:
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000, dtype=np.uint64)
    drawn = uniform(keys, 0, 0, "flip")
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert np.abs(np.histogram(drawn, 20, (0, 1))[0] - 1000).max() < 150, "evenly spread"
    assert abs(np.corrcoef(drawn, uniform(keys, 0, 1, "flip"))[0, 1]) < 0.03
    np.testing.assert_array_equal(uniform(keys[7:9], 0, 0, "flip"), drawn[7:9])
    for other in (
        uniform(keys, 1, 0, "flip"),
        uniform(keys, 0, 1, "flip"),
        uniform(keys, 0, 0, "zoom"),
    ):
        assert (other != drawn).mean() > 0.99


def test_uniform_gives_the_documented_example() -> None:
    keys = np.array([255, 256], dtype=np.uint64)
    np.testing.assert_allclose(uniform(keys, 0, 0, "flip"), [0.2981, 0.6409], atol=5e-5)
    np.testing.assert_allclose(uniform(keys[:1], 0, 1, "flip"), [0.9788], atol=5e-5)


def test_sample_keys_are_the_first_64_bits_of_ids_also_in_slices() -> None:
    ids = [f"{number:016x}" + "f" * 48 for number in (255, 256, 2**64 - 1)]
    chunks = pa.chunked_array([pa.array(["0" * 64, *ids]).slice(1, 2), pa.array(ids[2:])])
    assert sample_keys(chunks).tolist() == [255, 256, 2**64 - 1]
