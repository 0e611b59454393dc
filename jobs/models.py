"""List the versions of a model, show one, promote one, or roll back.

    python jobs/models.py models/ promote 3

The same as `afinar models`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["models", *sys.argv[1:]]))
