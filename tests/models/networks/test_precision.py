"""Precision: the TF32 flag outside and inside the context that disables it."""

from __future__ import annotations

import pytest
import torch

from afinar.models.networks.precision import tf32_disabled


@pytest.fixture(autouse=True)
def tf32_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's default; a training in this process disables it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def test_tf32_disabled_on_a_gpu_restores_the_flag_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), tf32_disabled(torch.device("cuda")):
        assert not torch.backends.cudnn.allow_tf32
        _ = 1 / 0
    assert torch.backends.cudnn.allow_tf32


def test_tf32_disabled_on_a_cpu_does_not_touch_the_flag() -> None:
    with tf32_disabled(torch.device("cpu")):
        assert torch.backends.cudnn.allow_tf32
