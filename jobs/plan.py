"""Estimate the time, bytes and requests of an ingest or a labelling.

    python jobs/plan.py ingest pictures/ dataset/ --size 224

The same as `afinar plan`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]]))
