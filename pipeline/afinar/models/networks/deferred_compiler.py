"""Use of torch and torchvision without an import of torch's compiler, `torch._dynamo`.

The import takes 1.1 to 1.9 s of processor time and 150 MB: it brings sympy, Triton and
torch.distributed's tensors with it. Much of torch asks for it although nothing is compiled:

- `torchvision.ops.roi_align` imports one function of `torch._dynamo.utils`, to ask whether a
  detector may be compiled;
- functions that run on the meta device, and methods of optimizers, are marked on their first call
  as ones that the compiler must not follow;
- each step of an optimizer tells the compiler that its graph ends there.

Within `without_compiler` stand-ins answer these requests. Whatever else is asked of them imports
the compiler. `import torch._dynamo` works as usual afterwards. Functions that were first called
within the block have no mark; they are no part of networks, which are what is compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any, Final

_COMPILER: Final = "torch._dynamo"
_UTILS: Final = "torch._dynamo.utils"


class _Deferred(types.ModuleType):
    """Stand-in for a module. What it does not have is looked up in the real one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


class _DeferredCompiler(_Deferred):
    """Stand-in for `torch._dynamo`, which marks nothing and has no graph to break."""

    def __init__(self) -> None:
        super().__init__(_COMPILER)
        self.__path__: list[str] = []  # makes it a package, so that its submodule is looked for

    @staticmethod
    def disable(function: Any, recursive: bool = True, *, wrapping: bool = True) -> Any:
        return function

    @staticmethod
    def graph_break(msg: str = "") -> None: ...


class _DeferredUtils(_Deferred):
    """Stand-in for `torch._dynamo.utils`, of which torchvision imports one function."""

    def __init__(self) -> None:
        super().__init__(_UTILS)

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        return importlib.import_module(_UTILS).is_compile_supported(device_type)


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Answer requests for the compiler with stand-ins, unless it has been imported."""
    if _COMPILER in sys.modules:
        yield
        return
    sys.modules[_COMPILER], sys.modules[_UTILS] = _DeferredCompiler(), _DeferredUtils()
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    for name in (_COMPILER, _UTILS):
        if isinstance(sys.modules.get(name), _Deferred):
            del sys.modules[name]
