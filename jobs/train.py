"""Train a classifier on a dataset and publish it as the next model version.

    python jobs/train.py dataset/ models/ --backbone resnet18 --regime full --epochs 5

The same as `afinar train`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
