"""Compare backbones, cuts, heads and regimes on one dataset.

    python jobs/compare.py dataset/ runs/ --backbone resnet18 --cut auto,layer3

The same as `afinar compare`; `--help` lists the flags.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
