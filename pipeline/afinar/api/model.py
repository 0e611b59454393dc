"""A published model in Python: predictions for pictures of any kind, and its network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from itertools import islice
from os import PathLike, fspath
from pathlib import Path
from typing import Final, TypeGuard, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from afinar.config.base import Precision, require
from afinar.config.models import ExportFormat
from afinar.errors import ForbiddenError, NotFoundError, RequestError, StorageError
from afinar.inference.predictor import Predictor, load_predictor
from afinar.models.networks.network import apply_input_view
from afinar.models.registry.export import ExportedModel, export_model
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import decode, decode_opened
from afinar.pictures.rejects import PictureError, Reason
from afinar.storage.open import read_uri
from afinar.storage.store import Store

Pixels = NDArray[np.uint8]
Picture = str | PathLike[str] | Image.Image | Pixels
"""A path or s3:// URI, a Pillow image, or pixels uint8: [height, width, 3] RGB, or grey [h, w]."""

_BATCH: Final = 64  # pictures that are decoded and kept in memory at a time


class Prediction(dict[str, float]):
    """Probability of each class for one picture; empty if the picture cannot be used.

    `label` and `score` are the class with the highest probability and that probability. `error`
    tells why a picture cannot be used; `label` is then None and `score` 0.
    """

    def __init__(self, scores: dict[str, float], error: PictureError | None = None) -> None:
        super().__init__(scores)
        self.error = error

    @property
    def label(self) -> str | None:
        """The class with the highest probability, None if there is an error."""
        return max(self, key=self.__getitem__) if self else None

    @property
    def score(self) -> float:
        """The highest probability, 0 if there is an error."""
        return max(self.values(), default=0.0)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction(error={str(self.error)!r})"
        best = sorted(self.items(), key=lambda item: -item[1])[:5]
        return f"Prediction({', '.join(f'{name} {score:.1%}' for name, score in best)})"


class Model(Predictor):
    """A published model, loaded and checked with its golden samples: `open_model` returns it.

    `predict` takes pictures of any kind. The model itself is callable with stored views, uint8
    [n, size, size, 3] such as `Dataset.read` returns, and returns probabilities float32
    [n, classes]. `classes` are the names of the classes, `version` is the published record:
    `version.metrics`, `version.lineage`, `version.regime` …
    """

    def __init__(self, store: Store, predictor: Predictor) -> None:
        super().__init__(predictor.network, predictor.version)
        self.store = store

    @overload  # text is an iterable of text too: the first signature that fits counts
    def predict(self, pictures: Picture) -> Prediction: ...  # type: ignore[overload-overlap]
    @overload
    def predict(self, pictures: Iterable[Picture]) -> list[Prediction]: ...
    def predict(self, pictures: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """Return the prediction for one picture, or those for many in the same order.

        A picture is a path or s3:// URI, a Pillow image, or an array uint8 [height, width, 3] or
        [height, width]; uint8 [n, height, width, 3] are n pictures. Pictures are prepared as in
        `afinar label`, so that the predictions are the same.

        Of many pictures, one that cannot be used has a prediction with `error`. A single one
        raises the error, PictureError. RequestError is raised for an array of another type.
        """
        if _is_one(pictures):
            (prediction,) = self._predict_batch([pictures])
            if prediction.error is not None:
                raise prediction.error
            return prediction
        predictions: list[Prediction] = []
        for batch in _batches(iter(cast("Iterable[Picture]", pictures))):
            predictions += self._predict_batch(batch)
        return predictions

    def _predict_batch(self, pictures: list[Picture]) -> list[Prediction]:
        views = [self._try_stored_view(picture) for picture in pictures]
        usable = [view for view in views if isinstance(view, np.ndarray)]
        scores = iter(self(np.stack(usable)) if usable else ())
        return [
            Prediction({}, view)
            if isinstance(view, PictureError)
            else Prediction(dict(zip(self.classes, map(float, next(scores)), strict=True)))
            for view in views
        ]

    def _try_stored_view(self, picture: Picture) -> Pixels | PictureError:
        try:
            return self._stored_view(picture)
        except PictureError as error:
            return error

    def _stored_view(self, picture: Picture) -> Pixels:
        view = self.version.stored_view
        if isinstance(picture, Image.Image):
            return decode_opened(picture, view)
        if not isinstance(picture, np.ndarray):
            return decode(_read(fspath(picture)), view).image

        is_colour = picture.ndim == 3 and picture.shape[2] == 3
        require(
            picture.dtype == np.uint8 and (is_colour or picture.ndim == 2),
            f"an array {picture.dtype} {list(picture.shape)} is no picture: give uint8 "
            "[height, width, 3], RGB, or uint8 [height, width]",
        )
        if picture.shape == (view.size, view.size, 3):
            return picture
        return decode_opened(Image.fromarray(picture), view)

    @property
    def module(self) -> nn.Module:
        """The network, in eval mode: normalised float32 [n, 3, side, side] → logits [n, classes].

        `side` is `version.input_view.input_size`. The input is RGB, channels first, and each
        channel is (x / 255 - mean) / std of uint8 pixels, with `mean` and `std` of
        `version.input_view`; `preprocess` computes it. Probabilities are
        `softmax(logits / version.temperature)`.
        """
        return self.network

    def preprocess(self, images: Pixels) -> Tensor:
        """Return the input of `module` for stored views, uint8 [n, size, size, 3]."""
        return apply_input_view(torch.from_numpy(images).to(self.device), self.version.input_view)

    def export(self, file_format: ExportFormat, path: str | Path) -> ExportedModel:
        """Write the published model to one local file, `onnx` or `torch.export`.

        The file takes uint8 [n, size, size, 3] and gives the scores of this model; it runs without
        afinar, and has predicted the golden samples. See `afinar.models.registry.export` for its
        input and the errors.
        """
        return export_model(self.store, self.version, file_format, path)

    def to(self, device: str | torch.device) -> Model:
        """Return this model on another device, such as "cuda", checked there."""
        return Model(self.store, load_predictor(self.store, self.version, _device_name(device)))

    def __repr__(self) -> str:
        architecture = self.version.architecture
        return (
            f"Model({f'{self.store.root}@{self.version.id}'!r}): {architecture.backbone}, "
            f"{self.version.regime}, {len(self.classes)} classes, "
            f"{architecture.input_size} px, on {self.device}"
        )

    def _repr_html_(self) -> str:
        rows = [
            (split, f"{metrics['top1']:.1%}")
            for split, metrics in self.version.metrics.items()
            if isinstance(metrics, dict) and "top1" in metrics
        ]
        body = "".join(f"<tr><td>{split} top-1</td><td>{value}</td></tr>" for split, value in rows)
        return f"<p>{escape(repr(self))}</p><table>{body}</table>"


def open_model(
    uri: str | Path, *, device: str | torch.device = "cpu", precision: Precision | None = None
) -> Model:
    """Load a published model: MODELS (its champion), MODELS@latest, or MODELS@VERSION.

    `device` is "cpu", "cuda", "cuda:1" …, or "auto" (a GPU if there is one). With a `precision`
    ("auto", "float32", "bfloat16") the network is optimised for inference, as far as the golden
    samples of the model get the same predictions; without one it is used as it was published.

    Raises RequestError if there is no such model or device, ModelError if the golden samples get
    other results here.
    """
    stored = find_model(str(uri))
    return Model(stored.store, load_predictor(*stored, _device_name(device), precision))


def _device_name(device: str | torch.device) -> str:
    """Return the name of a device that exists here. Raises RequestError for another."""
    name = str(device)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # builds without CUDA assert
        problem = str(error).splitlines()[0]
        raise RequestError(f"there is no device {name!r} here: {problem}") from error
    return name


def _is_one(pictures: Picture | Iterable[Picture]) -> TypeGuard[Picture]:
    if isinstance(pictures, np.ndarray):
        return pictures.ndim < 4
    return isinstance(pictures, str | PathLike | Image.Image)


def _batches(pictures: Iterator[Picture]) -> Iterator[list[Picture]]:
    while batch := list(islice(pictures, _BATCH)):
        yield batch


def _read(uri: str) -> bytes:
    """Read a picture. A failure is an error of that picture."""
    try:
        return read_uri(uri)
    except NotFoundError as error:
        raise PictureError(Reason.MISSING, str(error)) from error
    except ForbiddenError as error:
        raise PictureError(Reason.FORBIDDEN, str(error)) from error
    except StorageError as error:
        raise PictureError(Reason.UNREACHABLE, str(error)) from error
