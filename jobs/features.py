"""Compute the features of a dataset's pictures once, for frozen training and compare.

    python jobs/features.py dataset/ --backbone resnet18 --cut auto,layer3

The same as `afinar features`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["features", *sys.argv[1:]]))
