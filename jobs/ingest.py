"""Convert a folder or an s3:// prefix of pictures to an Arrow dataset.

    python jobs/ingest.py pictures/ dataset/ --size 224

The same as `afinar ingest`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["ingest", *sys.argv[1:]]))
