"""Find the picture that kills the process that reads it.

A process that dies reports nothing. So later attempts at a unit go picture by picture, and leave a
file `attempts/<unit>/<position>-<attempt>` while they work on one. A picture at which two attempts
died is quarantined; a single death may be an accident.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from afinar.pictures.rejects import PictureError, Reason
from afinar.storage.store import Store

ATTEMPTS: Final = "attempts"
_DEATHS: Final = 2
_FILE: Final = re.compile(r"([0-9]{1,9})-[0-9]{1,9}")  # other files are not ours

QUARANTINED: Final = PictureError(
    Reason.KILLED_WORKER,
    "two workers died or hung while they read this picture; it is not read again",
)
"""The reject of a picture that is not read again."""


@dataclass(frozen=True)
class BadInputTracker:
    """Attempt files of one unit.

    `attempt` is 0 for the first attempt, which neither reads nor writes them. `left_behind` are the
    files of earlier attempts that died. `quarantined` are the positions in the unit of pictures
    that are not to be read again.
    """

    store: Store
    unit: str
    attempt: int = 0
    left_behind: tuple[str, ...] = ()
    quarantined: frozenset[int] = frozenset()

    @contextmanager
    def working_on(self, position: int) -> Iterator[None]:
        """Keep an attempt file while the block runs. It is deleted if the block raises, too."""
        if not self.attempt:
            yield
            return
        name = f"{ATTEMPTS}/{self.unit}/{position}-{self.attempt}"
        self.store.put_if_absent(name, b"")
        try:
            yield
        finally:
            self.store.delete(name)

    def clear(self) -> None:
        """Delete the files of earlier attempts: the unit is complete."""
        for name in self.left_behind:
            self.store.delete(name)


def track_bad_inputs(store: Store, unit: str, attempt: int) -> BadInputTracker:
    """Return the tracker of one attempt at a unit.

    Example: attempts 1 and 2 died at picture 7 and left `7-1` and `7-2`; attempt 3 died at picture
    9 and left `9-3`. Attempt 4 skips picture 7 and reads picture 9 once more.
    """
    if not attempt:
        return BadInputTracker(store, unit)
    folder = f"{ATTEMPTS}/{unit}/"
    walk = (info.name.removeprefix(folder) for info in store.walk(folder.rstrip("/")))
    files = [match for file in walk if (match := _FILE.fullmatch(file))]
    names = [folder + file[0] for file in files]
    deaths = Counter(int(file[1]) for file in files)
    quarantined = frozenset(position for position, count in deaths.items() if count >= _DEATHS)

    return BadInputTracker(store, unit, attempt, tuple(names), quarantined)
