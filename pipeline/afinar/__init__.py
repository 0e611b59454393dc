"""afinar: distributed transfer learning for image archives, on Ray.

Jobs, with the arguments of the command line:

- `ingest(SOURCE, DATASET, size=224, …)`: convert pictures to an Arrow dataset, or update it.
- `train(DATASET, MODELS, backbone="resnet18", …)`: fine-tune a network, publish a model version.
- `compare(DATASET, RUNS, backbone="a,b", …)`: compare networks, heads and regimes.
- `label(SOURCE, PREDICTIONS, model=MODELS, …)`: label pictures (batch inference).

What they write:

- `open_dataset(DATASET)` is a `Dataset`: samples, `.numpy(split)`, `.torch(split)`, `.ray(split)`.
- `open_features(DATASET, …)` are features of a dataset that `afinar features` has computed.
- `open_models(MODELS)` is `Models`: the versions, `.champion`, `.promote(N)`, `.rollback()`.
- `open_model(MODELS)` is a `Model`: `.predict(pictures)`, `.module`.
- `open_explainer(MODELS)` is an `Explainer`: `.saliency(…)`, `.ideal(…)`, `.adversarial(…)`.
- `open_predictions(PREDICTIONS)` is `Predictions`: `.table`, `.rejects`.

All errors that afinar raises on purpose are `AfinarError`: `RequestError` (the request is wrong;
the message tells what to change), `ShortfallError` (a job ran and fell short), `PictureError` (a
picture cannot be used), and those of `afinar.errors`.

Each name is imported when it is first used: `import afinar` imports neither torch nor pyarrow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afinar.api.dataset import Dataset as Dataset
    from afinar.api.dataset import Sample as Sample
    from afinar.api.dataset import open_dataset as open_dataset
    from afinar.api.explain import Explainer as Explainer
    from afinar.api.explain import open_explainer as open_explainer
    from afinar.api.history import Models as Models
    from afinar.api.history import open_models as open_models
    from afinar.api.jobs import compare as compare
    from afinar.api.jobs import ingest as ingest
    from afinar.api.jobs import label as label
    from afinar.api.jobs import train as train
    from afinar.api.model import Model as Model
    from afinar.api.model import Prediction as Prediction
    from afinar.api.model import open_model as open_model
    from afinar.errors import AfinarError as AfinarError
    from afinar.errors import RequestError as RequestError
    from afinar.errors import ShortfallError as ShortfallError
    from afinar.features.reader import open_features as open_features
    from afinar.pictures.rejects import PictureError as PictureError
    from afinar.predictions.part_reader import Predictions as Predictions
    from afinar.predictions.part_reader import open_predictions as open_predictions

__version__ = "0.1.0"

_MODULES = {
    "AfinarError": "afinar.errors",
    "Dataset": "afinar.api.dataset",
    "Model": "afinar.api.model",
    "Models": "afinar.api.history",
    "PictureError": "afinar.pictures.rejects",
    "Prediction": "afinar.api.model",
    "Predictions": "afinar.predictions.part_reader",
    "RequestError": "afinar.errors",
    "Sample": "afinar.api.dataset",
    "ShortfallError": "afinar.errors",
    "compare": "afinar.api.jobs",
    "ingest": "afinar.api.jobs",
    "label": "afinar.api.jobs",
    "open_dataset": "afinar.api.dataset",
    "Explainer": "afinar.api.explain",
    "open_explainer": "afinar.api.explain",
    "open_features": "afinar.features.reader",
    "open_model": "afinar.api.model",
    "open_models": "afinar.api.history",
    "open_predictions": "afinar.predictions.part_reader",
    "train": "afinar.api.jobs",
}

__all__ = [
    "AfinarError",
    "Dataset",
    "Explainer",
    "Model",
    "Models",
    "PictureError",
    "Prediction",
    "Predictions",
    "RequestError",
    "Sample",
    "ShortfallError",
    "__version__",
    "compare",
    "ingest",
    "label",
    "open_dataset",
    "open_explainer",
    "open_features",
    "open_model",
    "open_models",
    "open_predictions",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'afinar' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
