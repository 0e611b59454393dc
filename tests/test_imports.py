"""Imports: ray only in execution, torch only in code that computes, neither by `import afinar`."""

from __future__ import annotations

import subprocess
import sys


def imported_by(statement: str) -> set[str]:
    """Return the top-level packages that a new interpreter has imported after `statement`."""
    probe = f"{statement}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_work_functions_import_no_ray() -> None:
    modules = imported_by(
        "import afinar.training.worker, afinar.labelling.driver, afinar.labelling.worker, "
        "afinar.ingestion.driver, afinar.report.training, afinar.report.comparison, "
        "afinar.evaluation.comparison, afinar.models.registry.golden"
    )
    assert "torch" in modules, "the probe works"
    assert "ray" not in modules


def test_drivers_of_ingest_and_label_import_no_torch() -> None:
    modules = imported_by(
        "import afinar.ingestion.driver, afinar.labelling.driver, afinar.execution.actor_pool, "
        "afinar.report.labelling, afinar.report.review, afinar.report.status"
    )
    assert "ray" in modules
    assert "torch" not in modules


def test_workers_import_without_the_convenience_libraries() -> None:
    """An accelerator machine may have torch, torchvision, pyarrow and little else."""
    missing = ["tyro", "cattrs", "s3fs", "ray", "rich", "jinja2", "tensorboardX"]
    modules = imported_by(
        f"import sys\nsys.modules |= dict.fromkeys({missing!r})\n"
        "import afinar.training.worker, afinar.labelling.worker, "
        "afinar.ingestion.driver, afinar.training.metrics, afinar.training.tensorboard"
    )
    assert "torch" in modules
