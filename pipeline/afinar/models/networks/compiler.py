"""Check that torch.compile works on this machine: it needs a C++ compiler."""

from __future__ import annotations

import torch
from torch import Tensor

from afinar.errors import RequestError


def require_compiler(device: torch.device) -> None:
    """Compile a function of one line for `device`, which takes a few seconds.

    Raises RequestError if that fails: there is no compiler, no header of Python, no place for its
    files.
    """

    def double(values: Tensor) -> Tensor:
        return values + values

    try:
        torch.compile(double)(torch.ones(8, device=device))
    except Exception as error:  # torch wraps whatever fails; a function this simple is no bug
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise RequestError(
            f"--compile does not work on this machine ({reason[0].rstrip('.')}): install a C++ "
            "compiler such as g++ and the headers of Python, or leave out --compile"
        ) from error
