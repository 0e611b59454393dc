"""`python -m tests.ingest.killed_at FOLDER NTH before|after SOURCE DATASET`: an ingest that SIGKILLs itself.

It dies right before or right after the NTH object is put into FOLDER of the dataset: driver and worker are one process
here, so that every step of the commit can be hit exactly.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter

from afinar.config.ingest import IngestConfig
from afinar.ingest.driver import run_ingest
from afinar.storage import local
from afinar.units.executor import InlineExecutor


def main(folder: str, nth: str, when: str, source: str, dataset: str) -> None:
    puts: Counter[str] = Counter()
    publish = local._NewFile.publish

    def deadly(self: local._NewFile, name: str) -> bool:
        where = name.split("/", maxsplit=1)[0]
        puts[where] += 1
        doomed = (where, puts[where]) == (folder, int(nth))
        if doomed and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = publish(self, name)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    local._NewFile.publish = deadly  # type: ignore[method-assign]
    run_ingest(IngestConfig(source=source, dataset=dataset, size=32), InlineExecutor())


if __name__ == "__main__":
    main(*sys.argv[1:])
