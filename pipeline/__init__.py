"""afinar: distributed transfer learning for image archives, on Ray.

The names below are the whole public surface for notebooks and tests. They are resolved on first use,
so that `import pipeline` costs nothing: torch comes with `open_model`, pyarrow with the other two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset.reading import open_dataset
    from pipeline.labelling.output import open_predictions
    from pipeline.labelling.predictor import open_model

__all__ = ["__version__", "open_dataset", "open_model", "open_predictions"]
__version__ = "0.1.0"

_HOMES = {
    "open_dataset": "pipeline.dataset.reading",
    "open_predictions": "pipeline.labelling.output",
    "open_model": "pipeline.labelling.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
