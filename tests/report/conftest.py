"""Two training runs on pictures and classes whose names look like markup."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa
import pytest

from afinar import open_dataset
from afinar.config.ingest import IngestConfig
from afinar.config.train import TrainConfig
from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun, read_run
from afinar.ingestion.driver import run_ingest
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import jpeg
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT

CLASS = NASTY.replace("/", "\N{FRACTION SLASH}")
FILE_NAMES = ('"><b>{}.jpg', f"{RIGHT_TO_LEFT}-{{}}.jpg", f"{LONG}-{{}}.jpg", "plain-{}.jpg")


@dataclass(frozen=True)
class Compared:
    """A dataset and the runs that were trained on it."""

    dataset: Dataset
    runs: list[EvaluatedRun]


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A dataset with a run from scratch of one epoch and a full one of four."""
    folder = tmp_path_factory.mktemp("report")
    for name, tint in ((CLASS, (60, 140, 60)), ("rust", (170, 80, 50))):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(40):
            file = FILE_NAMES[number % len(FILE_NAMES)].format(number)
            (folder / "pictures" / name / file).write_bytes(
                jpeg(number + 50 * len(name), tint=tint)
            )
    dataset, models = str(folder / "dataset"), str(folder / "models")
    config = IngestConfig(source=str(folder / "pictures"), dataset=dataset, size=64)
    run_ingest(config, InlineExecutor())
    runs = [_train(dataset, models, "scratch", 1), _train(dataset, models, "full", 4)]
    return Compared(open_dataset(dataset), runs)


def _train(dataset: str, models: str, regime: str, epochs: int) -> EvaluatedRun:
    from afinar.training.distributed import Group
    from afinar.training.publish import publish
    from afinar.training.task import plan_training
    from afinar.training.worker import train

    config = TrainConfig(
        dataset=dataset,
        models=models,
        backbone="small_cnn",
        regime=regime,
        weights="none",
        input_size=64,
        epochs=epochs,
        batch_size=8,
    )
    task = plan_training(config, regime)
    return read_run(open_store(models), publish(task, train(task, Group()), 1.0))


def with_one_mistake(run: EvaluatedRun) -> EvaluatedRun:
    """Return the same run with only its prediction of the highest score wrong."""
    rows = run.test.sort_by([("score", "descending")]).to_pylist()
    rows[0]["predicted"] = next(name for name in run.version.classes if name != rows[0]["label"])
    rows[0] |= {"runner_up": rows[0]["label"], "runner_up_score": 0.015625}
    rows[1:] = [{**row, "predicted": row["label"]} for row in rows[1:]]
    return replace(run, test=pa.Table.from_pylist(rows, schema=run.test.schema))
