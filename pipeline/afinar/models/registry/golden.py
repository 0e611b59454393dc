"""Golden samples: pictures stored with a model, with the logits that it had when it was published.

Every worker that loads a model decodes them and computes their logits before its first picture. So
if a library, a processor or an optimisation changes the results, nothing is labelled with them.
They also have the names of the classes and the probabilities: the model's record must turn the
logits into these.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.errors import ModelError, RecordError, StorageError
from afinar.models.networks.network import Network, apply_input_view, default_batch_size
from afinar.models.networks.precision import tf32_disabled
from afinar.models.registry.bundle import put_by_hash
from afinar.models.registry.versions import ModelVersion
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.arrow import from_ipc, to_ipc
from afinar.storage.objects import ObjectRef, get_object, sha256
from afinar.storage.open import read_uri
from afinar.storage.records import REMEDY, as_record, parse_object
from afinar.storage.store import Store

MAX_SAMPLES: Final = 32
REDUCED_TOLERANCE: Final = 0.02  # largest difference of a probability in reduced precision
# Largest difference of a float32 logit, relative to the largest logit: processors sum in different
# orders, and their rounding errors differ.
FLOAT32_TOLERANCE: Final = 1e-3
_RECORD_TOLERANCE: Final = 1e-4  # of a probability: both are computed from the same logits
_DECODE_TOLERANCE: Final = 1.0  # mean difference of a pixel value, of 255

_LABELLING: Final = b"afinar.labelling"  # key of the table's Arrow metadata


class GoldenPictures(NamedTuple):
    """Golden samples before their logits are known. See Golden."""

    files: list[bytes]
    images: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Labelling:
    """Fields of a model's record that turn logits into probabilities of classes."""

    classes: list[str]
    temperature: float


@dataclass(frozen=True)
class Golden:
    """Golden samples of a model.

    files: original bytes, empty where the file was not readable. images: uint8 [n, size, size, 3].
    logits and probabilities: float32 [n, classes]. `labelling` and `probabilities` are None in
    models of the format 1.
    """

    files: list[bytes]
    images: NDArray[np.uint8]
    logits: NDArray[np.float32]
    labelling: Labelling | None = None
    probabilities: NDArray[np.float32] | None = None


def pick_golden(dataset: Dataset, rows: NDArray[np.int64]) -> GoldenPictures:
    """Return up to 32 samples of `rows`: those with the smallest content hashes.

    A file that is missing or has changed since ingest gives empty bytes: its stored pixels do not
    come from it.
    """
    ids = dataset.index.column("sample_id").take(pa.array(rows)).to_pylist()
    by_hash = sorted(zip(ids, rows.tolist(), strict=True))
    chosen = [int(row) for _, row in by_hash[:MAX_SAMPLES]]
    return GoldenPictures([_original_file(dataset, row) for row in chosen], dataset.read(chosen))


def _original_file(dataset: Dataset, row: int) -> bytes:
    record = dataset.index.slice(row, 1).to_pylist()[0]
    try:
        data = read_uri(record["uri"])
    except StorageError:
        return b""
    return data if sha256(data) == record["sample_id"] else b""


def compute_logits(
    network: Network, images: NDArray[np.uint8], view: InputView
) -> NDArray[np.float32]:
    """Return the logits, float32 [n, classes], of stored views uint8 [n, size, size, 3]."""
    parameter = next(network.parameters())
    logits = []
    with torch.inference_mode(), tf32_disabled(parameter.device):
        for batch in torch.split(torch.from_numpy(images), default_batch_size(parameter.device)):
            inputs = apply_input_view(batch.to(parameter.device), view).to(parameter.dtype)
            logits.append(network(inputs).float().cpu().numpy())
    return np.concatenate(logits)


def put_golden(
    store: Store,
    pictures: GoldenPictures,
    logits: NDArray[np.float32],
    classes: list[str],
    temperature: float = 1.0,
) -> ObjectRef:
    """Write golden samples as an Arrow file, named by its hash.

    `classes` and `temperature` are those of the model's record.
    """
    files, images = pictures
    count, size = images.shape[:2]
    probabilities = softmax(logits / temperature).astype(np.float32)
    tensor_type = pa.fixed_shape_tensor(pa.uint8(), (size, size, 3))
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), size * size * 3)
    table = pa.table(
        {
            "file": pa.array(files, pa.binary()),
            "image": pa.ExtensionArray.from_storage(tensor_type, pixels),
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
            "probabilities": pa.array(list(probabilities), pa.list_(pa.float32())),
        },
        metadata={_LABELLING: json.dumps({"classes": classes, "temperature": temperature})},
    )

    return put_by_hash(store, "golden/{}.arrow", to_ipc(table), count)


def get_golden(store: Store, ref: ObjectRef) -> Golden:
    """Read golden samples. Raises RecordError if the object is not what `put_golden` writes."""
    uri = store.uri(ref.path)
    table = from_ipc(get_object(store, ref), uri=uri, rows=ref.rows)
    try:
        images = table.column("image").combine_chunks().to_numpy_ndarray()
        golden = Golden(
            files=table.column("file").cast(pa.binary()).to_pylist(),
            images=images.copy(),  # torch needs writable memory
            logits=_matrix(table, "logits"),
            labelling=_labelling(table, uri),
            probabilities=_matrix(table, "probabilities")
            if "probabilities" in table.column_names
            else None,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RecordError(f"{uri} holds no golden samples ({error}); {REMEDY}") from error

    size = images.shape[1] if images.ndim == 4 else 0
    if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3) or None in golden.files:
        raise RecordError(f"{uri} holds no golden samples: it has no pictures; {REMEDY}")
    return golden


def _matrix(table: pa.Table, name: str) -> NDArray[np.float32]:
    """Return a column of lists as float32 [n, k]. Raises ValueError if their lengths differ."""
    rows = table.column(name).cast(pa.list_(pa.float32()))
    matrix: NDArray[np.float32] = np.array(rows.to_pylist(), dtype=np.float32)
    if matrix.ndim != 2:
        raise ValueError(f"{name} has {matrix.ndim} dimensions")
    return matrix


def _labelling(table: pa.Table, uri: str) -> Labelling | None:
    stored = (table.schema.metadata or {}).get(_LABELLING)
    return None if stored is None else as_record(parse_object(stored, uri), Labelling, uri)


def assert_matches_record(golden: Golden, version: ModelVersion) -> None:
    """Raise RecordError unless a model's record gives golden samples their stored predictions.

    Classes and temperature must be the stored ones, and turn the stored logits into the stored
    probabilities. Golden samples of the format 1 have none of these.
    """
    size, count = version.stored_view.size, len(version.classes)
    if golden.images.shape[1] != size or golden.logits.shape[1] != count:
        raise _mismatch(version, f"pictures of {size} px and {count} classes")
    if golden.labelling is None or golden.probabilities is None:
        return

    if golden.labelling.classes != version.classes:
        raise _mismatch(version, "these classes in this order")
    probabilities = softmax(golden.logits / version.temperature)
    is_close = probabilities.shape == golden.probabilities.shape and np.allclose(
        probabilities, golden.probabilities, rtol=0, atol=_RECORD_TOLERANCE, equal_nan=True
    )
    if not is_close or golden.labelling.temperature != version.temperature:
        raise _mismatch(version, f"the temperature {version.temperature:g}")


def _mismatch(version: ModelVersion, stated: str) -> RecordError:
    return RecordError(
        f"the golden samples of model {version.id} were not predicted with {stated}, which its "
        f"record states: it was changed after it was published; {REMEDY}"
    )


def redecode(golden: Golden, stored: StoredView) -> Golden:
    """Return the golden samples with images decoded anew from their files.

    Raises ModelError if the images differ by more than rounding.
    """
    images = golden.images.copy()
    for position, file in enumerate(golden.files):
        if file:
            images[position] = decode(file, stored).image

    mean_difference = float(np.abs(images.astype(np.int16) - golden.images.astype(np.int16)).mean())
    if mean_difference > _DECODE_TOLERANCE:
        raise ModelError(
            f"golden samples decode differently here (mean difference {mean_difference:.2f} of "
            "255): another version of pillow or of its JPEG library; install the ones that the "
            "model's lineage names"
        )
    return replace(golden, images=images)


def assert_matches_golden(golden: Golden, network: Network, view: InputView) -> float:
    """Return the largest relative difference of a logit.

    Raises ModelError if it is above FLOAT32_TOLERANCE or not a number.
    """
    difference = relative_difference(golden, compute_logits(network, golden.images, view))
    if not difference <= FLOAT32_TOLERANCE:  # also true for NaN
        raise ModelError(
            f"golden samples have other logits here (relative difference {difference:.2g}, limit "
            f"{FLOAT32_TOLERANCE:g}): the model would not label as it was evaluated; compare the "
            "library versions with those in the model's lineage"
        )
    return difference


def relative_difference(golden: Golden, logits: NDArray[np.float32]) -> float:
    """Return the largest difference of a logit from its golden one, over the largest golden logit.

    Example: golden logits [2, -4] and logits [2.001, -4.002] give 0.002 / 4 = 0.0005.
    """
    scale = max(float(np.abs(golden.logits).max(initial=0.0)), 1e-6)
    return float(np.abs(logits - golden.logits).max(initial=0.0)) / scale


def matches_within_tolerance(golden: Golden, logits: NDArray[np.float32]) -> bool:
    """Return True if logits in reduced precision give the predictions of the golden ones.

    All probabilities must be within 0.02. The likeliest class must be the same if its golden
    probability exceeds the second's by more than 0.04. With a smaller margin it may change:
    probabilities [0.51, 0.49] may become [0.495, 0.505].
    """
    ours, expected = softmax(logits), softmax(golden.logits)
    is_close = float(np.abs(ours - expected).max(initial=0.0)) <= REDUCED_TOLERANCE

    margin = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0]
    same_class = ours.argmax(axis=1) == expected.argmax(axis=1)
    return is_close and bool(np.all(same_class | (margin <= 2 * REDUCED_TOLERANCE)))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probabilities float64 [n, classes] of logits."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities
