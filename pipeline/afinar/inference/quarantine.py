"""Finding the picture that kills its worker.

A process that dies says nothing, so another attempt at its unit goes picture by picture and leaves word of the one it
is at. A picture at which two attempts died is convicted: one may have died there by accident.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from afinar.storage.store import Store

ATTEMPTS: Final = "attempts"
_DEATHS: Final = 2


class BadInputTracker:
    """Word left by earlier attempts at a unit, and by this one. The first attempt neither leaves nor reads any."""

    def __init__(self, store: Store, unit: str, attempt: int) -> None:
        self._store, self._folder, self.attempt = store, f"{ATTEMPTS}/{unit}", attempt
        self._left = [info.name for info in store.walk(self._folder)] if attempt else []
        deaths = Counter(int(name.rsplit("/", 1)[1].split("-")[0]) for name in self._left)
        self.quarantined = frozenset(
            position for position, count in deaths.items() if count >= _DEATHS
        )
        """Positions in the unit of pictures that are not to be touched again."""

    @contextmanager
    def at(self, position: int) -> Iterator[None]:
        """Leave word, for as long as the block runs, that this attempt is at one picture.

        A block that raises has not died: its word goes too.
        """
        if not self.attempt:
            yield
            return
        name = f"{self._folder}/{position}-{self.attempt}"
        self._store.put_if_absent(name, b"")
        try:
            yield
        finally:
            self._store.delete(name)

    def clear(self) -> None:
        """Remove what earlier attempts left: the unit is done."""
        for name in self._left:
            self._store.delete(name)
