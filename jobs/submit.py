"""Run a job on a Ray cluster through the Ray Jobs API and follow it.

    python jobs/submit.py --address http://HEAD:8265 -- ingest s3://bucket/in s3://bucket/dataset

The same as `afinar submit`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["submit", *sys.argv[1:]]))
