"""Label every picture of a folder, an s3:// prefix, a list or a dataset with a model.

    python jobs/label.py archive/ predictions/ --model models/@champion

The same as `afinar label`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["label", *sys.argv[1:]]))
