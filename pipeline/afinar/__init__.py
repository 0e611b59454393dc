"""afinar: distributed transfer learning for image archives, on Ray.

`open_dataset`, `open_predictions` and `open_model` are the interface for notebooks and tests.
Each is imported when it is first used: `import afinar` imports neither torch nor pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afinar.dataset.reader import open_dataset
    from afinar.inference.predictor import open_model
    from afinar.predictions.part_reader import open_predictions

__all__ = ["__version__", "open_dataset", "open_model", "open_predictions"]
__version__ = "0.1.0"

_MODULES = {
    "open_dataset": "afinar.dataset.reader",
    "open_predictions": "afinar.predictions.part_reader",
    "open_model": "afinar.inference.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'afinar' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)
