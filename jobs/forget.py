"""Erase pictures from a dataset and from every version that contained them.

    python jobs/forget.py dataset/ cats/0001.jpg

The same as `afinar forget`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["forget", *sys.argv[1:]]))
