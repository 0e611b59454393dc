"""Find near-duplicates, leaks between splits, wrong labels and outliers in a dataset.

    python jobs/similar.py dataset/

The same as `afinar similar`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["similar", *sys.argv[1:]]))
