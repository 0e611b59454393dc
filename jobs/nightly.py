"""Run a night: ingest what changed, train a candidate, promote it if it is better, and label.

    python jobs/nightly.py --recipe nightly.toml

The same as `afinar nightly`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["nightly", *sys.argv[1:]]))
