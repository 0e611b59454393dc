"""The parts of torchvision that networks are built with, imported without torch's compiler.

`torchvision.ops.roi_align` imports one function of `torch._dynamo.utils`, to ask whether a detector
may be compiled. That import brings the compiler, sympy and torch.distributed's tensors with it: 1.1
of the 2.5 seconds of processor time that torch and torchvision take, and 150 MB, in every process.
While torchvision is imported here, that function is replaced by one that imports the compiler when
it is called. `import torch._dynamo` works as usual afterwards.
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


class _DeferredUtils(types.ModuleType):
    """Stand-in for `torch._dynamo.utils` from which only that one function can be imported.

    Any other name is looked up in the real module, which is imported for that.
    """

    @staticmethod
    def is_compile_supported(device_type: Any) -> Any:
        return importlib.import_module(_UTILS).is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(_UTILS), name)


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    if _COMPILER in sys.modules:
        yield
        return

    package = types.ModuleType(_COMPILER)
    package.__path__ = []  # makes it a package, so that its submodule is looked for
    sys.modules[_COMPILER], sys.modules[_UTILS] = package, _DeferredUtils(_UTILS)
    try:
        yield
    finally:
        _remove_stand_ins()


def _remove_stand_ins() -> None:
    if isinstance(sys.modules.get(_UTILS), _DeferredUtils):
        del sys.modules[_COMPILER], sys.modules[_UTILS]


# torch comes first: only what torchvision imports beyond it is deferred.
import torch  # noqa: E402, F401

with _without_compiler():
    from torchvision.models import efficientnet, get_model, get_model_weights
    from torchvision.models.efficientnet import EfficientNet, MBConvConfig
    from torchvision.models.feature_extraction import NodePathTracer
    from torchvision.ops import StochasticDepth

__all__ = [
    "EfficientNet",
    "MBConvConfig",
    "NodePathTracer",
    "StochasticDepth",
    "efficientnet",
    "get_model",
    "get_model_weights",
]
