"""Errors of a training: those that may pass, and those with which every attempt would end."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Final

import torch
import torch.distributed as dist

from afinar.errors import AfinarError, NoSpaceError, RequestError, StorageError

# A disk of another machine, or the way to it, fails like this when it is out of reach.
_UNREACHABLE: Final = {
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
# gloo raises RuntimeError: "[…/gloo/transport/tcp/pair.cc:561] Connection closed by peer […]".
_COLLECTIVE_MESSAGES: Final = ("/gloo/", "Connection closed by peer", "Connection reset by peer")
# torch raises RuntimeError for host memory and for the memory of cuBLAS and cuDNN.
_MEMORY_MESSAGES: Final = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_COMPILER_MODULES: Final = ("torch._inductor", "torch._dynamo", "triton")
_MAX_CAUSES: Final = 10


def is_transient(error: BaseException) -> bool:
    """Return True for errors after which another attempt may succeed.

    They are an unreachable store, which is a plain StorageError or an error of a connection, and a
    failure of a collective operation, which follows from another worker's death.
    """
    if isinstance(error, AfinarError):
        return type(error) is StorageError
    if isinstance(error, ConnectionError | TimeoutError | dist.DistError):
        return True
    if isinstance(error, OSError):
        return error.errno in _UNREACHABLE
    return isinstance(error, RuntimeError) and _mentions(error, _COLLECTIVE_MESSAGES)


def recurring_error(error: BaseException) -> AfinarError | None:
    """Return the error as one sentence with its remedy if every attempt would end with it.

    None for errors that may pass (`is_transient`), and for bugs. A full disk or memory is known
    also where a library met it.
    """
    if isinstance(error, AfinarError):
        return None if is_transient(error) else error

    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            place = cause.filename or "the disk of a worker"
            return NoSpaceError(f"{place}: no space left there. Free some and run again.")
    for cause in causes:
        if _is_out_of_memory(cause):
            where = "GPU memory" if _is_of_gpu(cause) else "memory"
            return RequestError(
                f"a worker ran out of {where}: give a smaller --batch-size, or --accumulate 2 or "
                "more, which computes a step in so many parts"
            )
    if any(kind.__module__.startswith(_COMPILER_MODULES) for kind in type(error).__mro__):
        return RequestError(
            f"--compile does not work for this training ({_first_line(error)}): install a C++ "
            "compiler such as g++ and the headers of Python, or leave out --compile"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        yield cause
        # torch.compile wraps whatever fails while it compiles.
        cause = getattr(cause, "inner_exception", None) or cause.__cause__


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and _mentions(error, _MEMORY_MESSAGES)


def _is_of_gpu(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or _mentions(
        error, ("CUDA", "CUBLAS", "CUDNN")
    )


def _mentions(error: BaseException, words: tuple[str, ...]) -> bool:
    text = str(error)
    return any(word in text for word in words)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else type(error).__name__
