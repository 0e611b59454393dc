"""Files of weights: from the bytes that a user names to a state dict, executing nothing in them.

People name many other things too: a checkpoint of a training, a pickled network, a pointer of Git
LFS, half a download. Each is refused in one sentence that names the file and what to do.
"""

from __future__ import annotations

import io
import logging
import pickle
import re
import zipfile
from collections.abc import Mapping
from typing import Any, Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from afinar.errors import RequestError
from afinar.models.networks.position_embeddings import fit_position_embedding

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]

# Where training frameworks keep the state dict of a checkpoint, the most usual first.
_NESTED_KEYS: Final = ("state_dict", "model_state_dict", "model", "module", "net")
_COMPILED: Final = "_orig_mod."  # torch.compile adds it to the names of a compiled module

_SAVE_STATE_DICT: Final = (
    "save the network's state_dict() with torch.save or safetensors, where its classes are "
    "installed, and give that file"
)
# First bytes of files that are no weights of torch, and what to do about them.
_OTHER_FILES: Final = (
    (
        b"version https://git-lfs",
        "is a pointer of Git LFS, not the file: run `git lfs pull` where it was cloned",
    ),
    (b"<", "is a web page, not weights: download the file itself"),
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file, as Keras writes: with torch, {_SAVE_STATE_DICT}"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it and give the file of weights in it"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it and give the file of weights in it"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it and give the file of weights in it"),
    (b"\x93NUMPY", f"is a NumPy array: with torch, {_SAVE_STATE_DICT}"),
)
_ZIP: Final = b"PK\x03\x04"
_CUT_OFF: Final = "is cut off or damaged: delete it, and download or copy it again"


def parse_weights(data: bytes, location: str) -> StateDict:
    """Return the state dict in a file of torch.save or safetensors, recognised by its bytes.

    A checkpoint may hold the state dict under one of the usual keys, such as `state_dict`.
    Prefixes that torch.compile adds are removed from the names. Raises RequestError for anything
    else; its message names `location`.
    """
    _check_first_bytes(data, location)
    if data[8:9] == b"{":
        state: Any = _load_safetensors(data, location)
    else:
        state = _load_torch(data, location)
    state = _unwrap(state, location)

    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise RequestError(
                f"--weights {location} holds no plain state dict: {name!r} is of type "
                f"{type(value).__name__}; {_SAVE_STATE_DICT}"
            )
        if value.layout != torch.strided or value.is_quantized:
            raise RequestError(
                f"--weights {location}: {name} is sparse or quantized; give the weights as they "
                "were before"
            )
    return {name.replace(_COMPILED, ""): value for name, value in state.items()}


def _check_first_bytes(data: bytes, location: str) -> None:
    if not data.strip(b"\0"):
        raise RequestError(
            f"--weights {location} is empty: delete it, and download or copy it again"
        )
    for start, message in _OTHER_FILES:
        if data.lstrip().startswith(start):
            raise RequestError(f"--weights {location} {message}")
    if not data.startswith(_ZIP):
        return

    # torch.save writes a zip archive. Its directory is at the end, so half a file has none.
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise RequestError(f"--weights {location} {_CUT_OFF}") from error
    if "constants.pkl" in names:
        raise RequestError(
            f"--weights {location} is a TorchScript archive: load it with torch.jit.load, and "
            f"{_SAVE_STATE_DICT}"
        )
    if "data.pkl" not in names:
        raise RequestError(
            f"--weights {location} is a zip archive of {len(names)} files: unpack it and give the "
            "file of weights in it"
        )


def _load_safetensors(data: bytes, location: str) -> StateDict:
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise RequestError(f"--weights {location} {_CUT_OFF} ({error})") from error


def _load_torch(data: bytes, location: str) -> Any:
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused:
            raise RequestError(
                f"--weights {location} holds objects of Python ({refused[1]}), which are not "
                f"loaded because they can run code: {_SAVE_STATE_DICT}"
            ) from error
        raise RequestError(
            f"--weights {location} is not a state dict that loads without running code, or it is "
            f"cut off: {_SAVE_STATE_DICT}"
        ) from error
    except Exception as error:  # a damaged file raises almost anything
        raise RequestError(f"--weights {location} {_CUT_OFF}") from error


def _unwrap(loaded: Any, location: str) -> Mapping[Any, Any]:
    """Return the state dict in what a file held: the whole of it, or one entry of a checkpoint."""
    if isinstance(loaded, Mapping):
        nested = [key for key in _NESTED_KEYS if isinstance(loaded.get(key), Mapping)]
        if not nested:
            if loaded:
                return loaded
        elif loaded[nested[0]]:
            logger.info(f"note: {location} is a checkpoint; its {nested[0]!r} is used")
            return _unwrap(loaded[nested[0]], location)

    held = f"a {type(loaded).__name__}" if not isinstance(loaded, Mapping) else "nothing"
    raise RequestError(
        f"--weights {location} holds no plain state dict but {held}: {_SAVE_STATE_DICT}"
    )


def select_tensors(state: StateDict, needed: Mapping[str, Tensor], location: str) -> StateDict:
    """Return the tensors of `state` under the names of `needed`, whose values may be on any device.

    A prefix that all names share may be left out: `module.` of DataParallel, `model.` of Lightning,
    or `net.encoder.`. Counters of batches (`num_batches_tracked`) may be missing. Position
    embeddings of vision transformers are interpolated to the needed number of patches. Raises
    RequestError if tensors are missing, have another shape or type, or are not finite; its message
    names some of them.
    """
    required = [name for name in needed if not name.endswith("num_batches_tracked")]
    prefix = _common_prefix(state, required, location)
    if prefix:
        logger.info(f"note: the names in {location} begin with {prefix!r}, which is left out")

    missing = [name for name in required if prefix + name not in state]
    if missing:
        raise RequestError(
            f"--weights {location} does not fit this backbone: it lacks {_first(missing)}; it has "
            f"{_first(list(state))}"
        )
    selected = {
        name: fit_position_embedding(name, state[prefix + name], tensor.shape)
        for name, tensor in needed.items()
        if prefix + name in state
    }

    misshapen = [
        f"{name} is {list(tensor.shape)} instead of {list(needed[name].shape)}"
        for name, tensor in selected.items()
        if tensor.shape != needed[name].shape
        or tensor.is_floating_point() != needed[name].is_floating_point()
    ]
    if misshapen:
        raise RequestError(f"--weights {location} does not fit this backbone: {_first(misshapen)}")
    infinite = [name for name, tensor in selected.items() if not tensor.isfinite().all()]
    if infinite:
        raise RequestError(
            f"--weights {location} has values that are not finite in {_first(infinite)}: the "
            "training that wrote it diverged"
        )
    return selected


def _common_prefix(state: StateDict, required: list[str], location: str) -> str:
    """Return the prefix under which `state` has the required names; "" if there is none.

    Raises RequestError if there are several, such as `student.` and `teacher.`.
    """
    if not required or required[0] in state:
        return ""
    ends = f".{required[0]}"
    candidates = [name[: 1 - len(ends)] for name in state if name.endswith(ends)]
    prefixes = [prefix for prefix in candidates if all(prefix + name in state for name in required)]
    if len(prefixes) > 1:
        raise RequestError(
            f"--weights {location} holds several networks, under {_first(prefixes)}: save one of "
            "them and give that file"
        )

    return prefixes[0] if prefixes else ""


def _first(items: list[str]) -> str:
    """Return the first three items, and how many more there are."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(items[:3]) + more
