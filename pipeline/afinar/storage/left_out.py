"""Files and folders that systems leave among pictures: a source is listed without them.

Network disks keep thumbnails and deleted files beside the pictures (`@eaDir`, `#recycle`), archive
tools and desktops add files of their own (`__MACOSX`, `Thumbs.db`). Ingested, thumbnails would leak
test pictures into training. Folders and buckets use the one list here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from threading import Lock
from typing import Final

HIDDEN: Final = "hidden"
"""Name under which files and folders with a leading dot are counted, but for well-known ones."""

_APPLE_DOUBLE: Final = "._*"  # macOS writes `._a.jpg` beside `a.jpg` where forks are not supported
_TRASH: Final = ".Trash*"

# As people know them; they are compared without regard to case.
_SYSTEM_NAMES: Final = (
    # Synology
    "@eaDir", "@tmp", "#recycle", "#snapshot",
    # QNAP
    "@Recycle", "@Recently-Snapshot",
    # NetApp
    "~snapshot",
    # Windows
    "$RECYCLE.BIN", "System Volume Information", "Thumbs.db", "ehthumbs.db", "desktop.ini",
    # macOS
    "__MACOSX", "Network Trash Folder", "Temporary Items",
    # Linux
    "lost+found",
)  # fmt: skip
_KNOWN_HIDDEN: Final = (
    ".@__thumb", ".AppleDouble", ".DS_Store", ".Spotlight-V100", ".TemporaryItems", ".fseventsd",
    ".git", ".ipynb_checkpoints", ".snapshot", ".thumbnails",
)  # fmt: skip

_LABELS: Final = {name.lower(): name for name in (*_SYSTEM_NAMES, *_KNOWN_HIDDEN)}
_IN_KEY: Final = re.compile(
    rf"/(?=[.@#~$_SsTtEeDdNnLl])(\.[^/]*|(?:{'|'.join(map(re.escape, _SYSTEM_NAMES))})(?![^/]))",
    re.IGNORECASE,
)


class LeftOut:
    """Counts of what a listing left out, by name. Threads may share it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = Lock()

    def add(self, label: str) -> None:
        """Count a file or a folder under a label of `system_label`."""
        with self._lock:
            self.counts[label] += 1


def describe_left_out(counts: Mapping[str, int]) -> str:
    """Return counts as text: "12 .txt, 3 without ending"."""
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def system_label(name: str) -> str | None:
    """Return under which name a file or folder called `name` is left out; None if it is listed."""
    lower = name.lower()
    if name[0] != ".":
        return _LABELS.get(lower)
    if name.startswith("._"):
        return _APPLE_DOUBLE
    return _TRASH if lower.startswith(".trash") else _LABELS.get(lower, HIDDEN)


def system_place(key: str, start: int) -> str | None:
    """Return the part of a key up to its first name that is left out; None if there is none.

    `start` is the length of the part above the listed folder, which is not looked at. Example:
    `a/@eaDir/1.jpg/M.jpg` gives `a/@eaDir`.
    """
    text = f"/{key}"
    match = _IN_KEY.search(text, start)
    return None if match is None else text[1 : match.end()]
