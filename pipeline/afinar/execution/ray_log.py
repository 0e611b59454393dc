"""Keep the output of Ray's processes during a training as a file of the run's folder."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Final

from afinar.storage.store import Store

_MAX_LINES: Final = 20_000  # the newest ones; a line has some hundred bytes

_lines: deque[str] = deque(maxlen=_MAX_LINES)


def keep(process: str, lines: Iterable[str]) -> None:
    """Keep lines that are not of afinar's log."""
    _lines.extend(f"({process}) {line}" for line in lines)


def save(store: Store, run: str) -> None:
    """Write the lines that were kept since the last call to the run's folder, and forget them."""
    if not _lines:
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    data = "".join(f"{line}\n" for line in _lines).encode(errors="backslashreplace")
    _lines.clear()
    store.put_if_absent(f"runs/{run}/ray-{stamp}.log", data)
