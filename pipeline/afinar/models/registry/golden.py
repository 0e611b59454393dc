"""Golden samples: pictures that a bundle carries with the answers it gave on the day it was published.

Every worker that loads a bundle decodes and scores them before its first picture, so a library, a
processor or a shortcut that changes the answers is found before it labels anything.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from afinar.dataset.reader import Dataset
from afinar.errors import ModelError, StorageError
from afinar.models.networks.network import Network, prepare
from afinar.models.registry.bundle import put_by_hash
from afinar.pictures.decode import decode
from afinar.pictures.preprocessing import InputView, StoredView
from afinar.storage.arrow import to_ipc
from afinar.storage.objects import ObjectRef, get_object, sha256
from afinar.storage.open import open_reader
from afinar.storage.store import Store

COUNT: Final = 32
REDUCED_TOLERANCE: Final = 0.02  # of a probability
FLOAT32_TOLERANCE: Final = (
    1e-3  # relative to the largest logit: other processors sum in another order
)


@dataclass(frozen=True)
class Golden:
    """files: original bytes, b"" where out of reach; images uint8 [n, s, s, 3]; logits float32 [n, classes]."""

    files: list[bytes]
    images: NDArray[np.uint8]
    logits: NDArray[np.float32]


def pick_golden(dataset: Dataset, rows: NDArray[np.int64]) -> tuple[list[bytes], NDArray[np.uint8]]:
    """Up to 32 of `rows`, spread by content hash, with their original files where these still are.

    A file that changed since ingest is no witness of the stored pixels and is left out.
    """
    ids = dataset.index.column("sample_id").take(pa.array(rows)).to_pylist()
    chosen = [int(row) for _, row in sorted(zip(ids, rows.tolist(), strict=True))[:COUNT]]
    files = [_original(dataset, row) for row in chosen]
    return files, dataset.read(chosen)


def _original(dataset: Dataset, row: int) -> bytes:
    record = dataset.index.slice(row, 1).to_pylist()[0]
    folder, _, name = record["uri"].rpartition("/")
    try:
        data = open_reader(folder).get(name)
    except StorageError:
        return b""
    return data if sha256(data) == record["sample_id"] else b""


def score(network: Network, images: NDArray[np.uint8], view: InputView) -> NDArray[np.float32]:
    """Logits float32 [n, classes] of stored views uint8 [n, s, s, 3]."""
    first = next(network.parameters())
    with torch.inference_mode():
        inputs = prepare(torch.from_numpy(images).to(first.device), view).to(first.dtype)
        logits: NDArray[np.float32] = network(inputs).float().cpu().numpy()
    return logits


def put_golden(
    store: Store, files: list[bytes], images: NDArray[np.uint8], logits: NDArray[np.float32]
) -> ObjectRef:
    """Write golden samples, named by their hash."""
    count, size = images.shape[:2]
    kind = pa.fixed_shape_tensor(pa.uint8(), (size, size, 3))
    flat = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), size * size * 3)
    table = pa.table(
        {
            "file": pa.array(files, pa.binary()),
            "image": pa.ExtensionArray.from_storage(kind, flat),
            "logits": pa.array(list(logits), pa.list_(pa.float32())),
        }
    )
    return put_by_hash(store, "golden/{}.arrow", to_ipc(table), count)


def get_golden(store: Store, ref: ObjectRef) -> Golden:
    """Read golden samples back."""
    with pa.ipc.open_file(pa.BufferReader(get_object(store, ref))) as reader:
        table = reader.read_all()
    return Golden(
        files=table.column("file").to_pylist(),
        images=table.column("image")
        .combine_chunks()
        .to_numpy_ndarray()
        .copy(),  # torch wants to own its input
        logits=np.array(table.column("logits").to_pylist(), dtype=np.float32),
    )


def redecode(golden: Golden, stored: StoredView) -> Golden:
    """The golden samples with the images that their files give here. Raises ModelError when they are others."""
    images = golden.images.copy()
    for position, file in enumerate(golden.files):
        if file:
            images[position] = decode(file, stored).image
    drift = float(np.abs(images.astype(np.int16) - golden.images.astype(np.int16)).mean())
    if drift > 1.0:
        raise ModelError(
            f"golden samples decode differently here (mean difference {drift:.2f} of 255): another version "
            "of pillow or of its JPEG library; install the ones that the model's lineage names"
        )
    return replace(golden, images=images)


def assert_matches_golden(golden: Golden, network: Network, view: InputView) -> float:
    """The largest relative difference of a logit. Raises ModelError when it is more than rounding."""
    apart = difference(golden, score(network, golden.images, view))
    if not apart <= FLOAT32_TOLERANCE:
        raise ModelError(
            f"golden samples score differently here (relative difference {apart:.2g}, limit "
            f"{FLOAT32_TOLERANCE:g}): the model would label other than it was evaluated; compare the library "
            "versions with those in the model's lineage"
        )
    return apart


def difference(golden: Golden, logits: NDArray[np.float32]) -> float:
    """Largest difference of a logit from the golden one, relative to the largest of them."""
    scale = max(float(np.abs(golden.logits).max(initial=0.0)), 1e-6)
    return float(np.abs(logits - golden.logits).max(initial=0.0)) / scale


def matches_within_tolerance(golden: Golden, logits: NDArray[np.float32]) -> bool:
    """Whether answers in reduced precision are the golden ones: probabilities within 0.02, and the same class first
    where it leads by more than 0.04."""
    ours, theirs = _softmax(logits), _softmax(golden.logits)
    lead = np.diff(np.sort(theirs, axis=1)[:, -2:], axis=1)[:, 0]
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    close = float(np.abs(ours - theirs).max(initial=0.0)) <= REDUCED_TOLERANCE
    return close and bool(np.all(same | (lead <= 2 * REDUCED_TOLERANCE)))


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    raised = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    total: NDArray[np.float64] = raised / raised.sum(axis=1, keepdims=True)
    return total
