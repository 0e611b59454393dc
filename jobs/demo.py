"""Run ingest, train and label on real pictures and write a report.

    python jobs/demo.py demo

The same as `afinar demo`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
