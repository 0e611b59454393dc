"""Show what a model sees: activations, ideal pictures, adversarial pictures, saliency maps.

    python jobs/explain.py saliency scan.jpg --model models/@champion --out explained/

The same as `afinar explain`; `--help` lists the methods.
"""

import sys

from afinar.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["explain", *sys.argv[1:]]))
