"""Show what a dataset or a prediction folder contains; verify it; delete what nothing needs.

    python jobs/status.py dataset/ --verify

The same as `afinar status`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["status", *sys.argv[1:]]))
