"""An ingest that kills itself with SIGKILL right before or right after it puts one object.

    python -m tests.ingestion.killed_at FOLDER NTH before|after SOURCE DATASET

It dies at the NTH object that is put into FOLDER of the dataset. Driver and worker are one process
here, so that every step of the commit can be interrupted exactly.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

from afinar.storage import local
from tests.archives import ingest


def main(folder: str, nth: str, when: str, source: str, dataset: str) -> None:
    """Replace the function that puts an object by one that dies, and ingest."""
    puts: Counter[str] = Counter()
    publish = local._NewFile.save_as

    def deadly_publish(self: local._NewFile, name: str) -> bool:
        put_folder = name.split("/", maxsplit=1)[0]
        puts[put_folder] += 1
        is_last = (put_folder, puts[put_folder]) == (folder, int(nth))
        if is_last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = publish(self, name)
        if is_last:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    local._NewFile.save_as = deadly_publish  # type: ignore[method-assign]
    ingest(source, dataset)


if __name__ == "__main__":
    main(*sys.argv[1:])
