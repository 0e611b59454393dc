"""Predict one picture in this process, without Ray. Nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from afinar.errors import ForbiddenError, NotFoundError, RequestError, StorageError
from afinar.models.registry.versions import find_model
from afinar.pictures.decode import decode
from afinar.pictures.profiles import require_colour_management
from afinar.pictures.rejects import PictureError, Reason
from afinar.predictions.columns import best_classes
from afinar.sources.uri_list import is_list
from afinar.storage.open import normalize_uri, open_reader, read_uri


def label_one(picture: str, model: str, top_k: int) -> dict[str, Any]:
    """Return the best classes of one picture, a local file or an s3:// object.

    `model` is MODELS@VERSION. The result is `{"picture", "model", "predictions": [{"label",
    "score"}]}`, best first. Raises RequestError if there is no such picture or model, PictureError
    if the picture cannot be read or decoded.
    """
    require_colour_management()
    uri = normalize_uri(picture)
    store, version = find_model(model)
    data = _read(uri)
    try:
        image = decode(data, version.stored_view).image
    except PictureError as error:
        raise PictureError(error.reason, f"{uri}: {error.detail}") from error

    # torch is imported only after the picture is decoded: a wrong request fails at once.
    from afinar.inference.predictor import load_predictor

    (scores,) = load_predictor(store, version)(image[None])
    (best,) = best_classes(scores[None], top_k)
    return {
        "picture": uri,
        "model": f"{store.root}@{version.id}",
        "predictions": [
            {"label": version.classes[number], "score": float(scores[number])} for number in best
        ],
    }


def _read(uri: str) -> bytes:
    is_bucket = uri.startswith("s3://") and "/" not in uri.removeprefix("s3://")
    if is_bucket or _is_local_folder(uri):
        raise _needs_predictions(uri, "folder")
    if is_list(uri):
        raise _needs_predictions(uri, "list of pictures")

    try:
        return read_uri(uri)
    except NotFoundError as error:
        if uri.startswith("s3://") and _is_prefix(uri):
            raise _needs_predictions(uri, "folder") from None
        raise RequestError(
            f"there is no picture {uri}: name a file or an s3:// object ({error})"
        ) from None
    except ForbiddenError as error:
        raise PictureError(Reason.FORBIDDEN, str(error)) from error
    except StorageError as error:
        raise PictureError(Reason.UNREACHABLE, str(error)) from error


def _is_local_folder(uri: str) -> bool:
    return not uri.startswith("s3://") and Path(uri).is_dir()


def _is_prefix(uri: str) -> bool:
    try:
        return next(open_reader(uri).walk(), None) is not None
    except NotFoundError:  # no such bucket
        return False


def _needs_predictions(uri: str, kind: str) -> RequestError:
    return RequestError(
        f"{uri} is a {kind}, and without PREDICTIONS the classes of one picture are printed: name "
        f"a picture, or write `afinar label {uri} PREDICTIONS --model …` with a place for the "
        "predictions"
    )
