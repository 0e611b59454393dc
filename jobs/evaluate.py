"""Evaluate a published model on a dataset, also on blurred, dark and rotated pictures.

    python jobs/evaluate.py dataset/ --model models/@champion

The same as `afinar evaluate`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
