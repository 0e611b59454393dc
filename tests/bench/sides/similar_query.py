"""Time of `similar DATASET PICTURE`, without the import of torch.

python -m tests.bench.sides.similar_query '{"dataset": "…", "picture": "…"}'
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main(dataset: str, picture: str) -> dict[str, Any]:
    """Return the seconds of the query and of the import, and the nearest picture."""
    started = time.perf_counter()
    import torch
    import torchvision  # noqa: F401  (imported with the backbones)

    imported = time.perf_counter()
    from afinar.analysis.nearest import find_nearest
    from afinar.config.similar import SimilarConfig

    found = find_nearest(SimilarConfig(dataset=dataset, picture=picture))
    return {
        "query_s": time.perf_counter() - imported,
        "import_s": imported - started,
        "nearest": found["nearest"][0]["uri"],
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
