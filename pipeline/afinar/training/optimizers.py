"""`torch.optim`, used without an import of torch's compiler (see `networks.deferred_compiler`).

No step is ever compiled. Where torch asks for the compiler in a way that is not foreseen here, it
is imported, as it would be without this module.
"""

from __future__ import annotations

import inspect
from typing import Final

from torch import optim

from afinar.models.networks.deferred_compiler import without_compiler

__all__ = ["optim", "take_step"]

_MARK: Final = "__dynamo_disable"


def take_step(optimizer: optim.Optimizer) -> None:
    """Call `optimizer.step()`."""
    with without_compiler():
        optimizer.step()


def _mark_methods() -> None:
    """Mark methods of optimizers as if they had been called before."""
    for _, method in inspect.getmembers(optim.Optimizer, inspect.isfunction):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None and not hasattr(plain, _MARK):
            setattr(plain, _MARK, plain)


_mark_methods()
