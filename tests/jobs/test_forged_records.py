"""Every record that a job reads, with every field removed, of another type, or extreme.

The records are those of real jobs. Each change must be accepted or refused in one sentence that
names the record. Any other exception is a bug.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from afinar.cli.status import describe
from afinar.config.ingest import IngestConfig
from afinar.config.status import StatusConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import AfinarError
from afinar.evaluation.comparison import read_run
from afinar.ingestion.driver import IngestJob, run_ingest
from afinar.labelling.run_report import find_baseline, update_source_stats
from afinar.labelling.stats import LabelStats
from afinar.models.registry.aliases import promote
from afinar.models.registry.versions import VERSIONS, find_model, get_model
from afinar.predictions.manifest import read_manifest
from afinar.predictions.part_reader import open_predictions
from afinar.report.status import read_status
from afinar.storage.markers import committed_units, read_markers
from afinar.storage.open import open_store
from afinar.training.checkpoint import Checkpoints
from afinar.training.publish import read_result
from afinar.training.task import plan_training
from afinar.units.executor import InlineExecutor
from tests.archives import label
from tests.conftest import Trained
from tests.training.runs import config as train_config
from tests.training.runs import interrupt_after

REMOVED = object()
WRONG: tuple[object, ...] = (
    REMOVED,
    None,
    True,
    -1,
    0,
    1.5,
    10**30,
    "x",
    "../../x",
    "\ud800",
    [],
    [None],
    {},
    {"a": 1},
)
# Fields that are shown, or compared, as they are.
FREE = {"metrics", "config", "libraries", "recipe", "last_run"}
DEPTH = 4
TEXTS = (
    b"", b"null", b"[]", b"{}", b"{" * 5000, b"\xff\xfe", b'{"format": "x", "format": "y"}',
    b'{"version": NaN}', b'{"a": ' + b"[" * 100_000,
)  # fmt: skip


@dataclass(frozen=True)
class Forgery:
    """A record on disk, and what reads it."""

    path: Path
    read: Callable[[], object]


@pytest.fixture(scope="module")
def world(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Forgery]:
    """Records of an ingest, a labelling and a training that was interrupted."""
    folder = tmp_path_factory.mktemp("world")
    dataset = folder / "dataset"
    run_ingest(
        IngestConfig(source=str(trained.pictures), dataset=str(dataset), size=64), InlineExecutor()
    )
    models = Path(shutil.copytree(trained.models, folder / "models"))
    out = folder / "predictions"
    label(trained.pictures, out, f"{models}@1", scores=True)
    promote(open_store(str(models)), 1, "again")

    training = train_config(
        Trained(trained.pictures, str(dataset), ""), folder / "unfinished", checkpoint_steps=2
    )
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(11, training, patch)
    task = plan_training(training, "another")
    store = open_store(task.config.models)
    shutil.copy(models / "runs/run/outcome.json", folder / "unfinished/runs/run/outcome.json")

    def read_predictions() -> None:
        describe(read_status(StatusConfig(path=str(out), verify=True)))
        manifest = read_manifest(open_store(str(out)))
        (name,) = manifest.partitions
        _ = open_predictions(str(out)).table
        for source in manifest.partitions[name].sources:
            find_baseline(manifest, name, source)
        update_source_stats(
            manifest.partitions[name], "x", 2, LabelStats(), LabelStats(), LabelStats()
        )

    def read_dataset() -> None:
        describe(read_status(StatusConfig(path=str(dataset), verify=True)))
        opened = open_dataset(str(dataset))
        opened.read([0, len(opened.index) - 1])
        source = IngestConfig(source=str(trained.pictures), dataset=str(dataset), size=64)
        job = IngestJob(source, InlineExecutor())
        current = job.open_current()
        job.is_current(job.make_plan(current).table, current)
        job.unchanged(job.make_plan(current).table, current)

    def read_model() -> None:
        describe(read_status(StatusConfig(path=str(models), verify=True)))
        store, version = find_model(f"{models}@1")
        if "run" in version.lineage:
            read_run(store, get_model(store, 1))

    def read_units() -> None:
        read_markers(open_store(str(dataset)), committed_units(open_store(str(dataset))))

    checkpoint = sorted((folder / "unfinished/runs/run/checkpoints").glob("*.json"))[-1]
    unit = sorted((dataset / "units").iterdir())[0]
    return {
        "dataset": Forgery(dataset / "manifests/00000001.json", read_dataset),
        "predictions": Forgery(out / "manifests/00000001.json", read_predictions),
        "model": Forgery(models / VERSIONS / "00000001.json", read_model),
        "alias": Forgery(
            models / "aliases/champion/00000002.json", lambda: find_model(f"{models}@champion")
        ),
        "unit": Forgery(unit, read_units),
        "unfinished": Forgery(
            next((folder / "unfinished/unfinished").iterdir()), lambda: plan_training(training, "x")
        ),
        "unfinished models": Forgery(
            next((folder / "unfinished/unfinished").iterdir()),
            lambda: describe(read_status(StatusConfig(path=str(folder / "unfinished")))),
        ),
        "checkpoint": Forgery(
            checkpoint, lambda: Checkpoints(store, "run", task.fingerprint).newest()
        ),
        "outcome": Forgery(
            folder / "unfinished/runs/run/outcome.json", lambda: summarize(read_result(task))
        ),
    }


def summarize(result: Any) -> object:
    return result.stall_fraction, result.history[-1:], [best["path"] for best in result.best]


KINDS = (
    "dataset", "predictions", "model", "alias", "unit", "unfinished", "unfinished models",
    "checkpoint", "outcome",
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each field, to a depth; of a list only its first item."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list) and len(path) < DEPTH and key not in FREE:
            yield from places(item, (*path, key))


def changed(record: Any, path: tuple[Any, ...], wrong: object) -> Any:
    record = copy.deepcopy(record)
    *parents, last = path
    holder = record
    for key in parents:
        holder = holder[key]
    if wrong is REMOVED:
        del holder[last]
    else:
        holder[last] = wrong
    return record


def outcome_of(read: Callable[[], object], where: str, path: Path) -> str:
    """Return "accepted" or "refused"; fail if the error is no sentence on the record."""
    try:
        read()
    except AfinarError as error:
        sentence = str(error)
        assert "\n" not in sentence, where
        assert sentence.count(". ") <= 2, f"{where}: {sentence}"
        # A checkpoint of another training is no damage, and no other object is this record.
        is_other = "another training" in sentence or path.name not in sentence
        assert error.exit_code == 2 or is_other, f"{where}: {sentence}"
        return "refused"
    except Exception as error:
        raise AssertionError(f"{where}: {type(error).__name__}: {error}") from error
    return "accepted"


@pytest.mark.parametrize("kind", KINDS)
def test_each_wrong_field_is_accepted_or_refused_in_one_sentence(
    kind: str, world: dict[str, Forgery], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    forgery = world[kind]
    original = forgery.path.read_bytes()
    record = json.loads(original)
    counts: Counter[str] = Counter()
    try:
        for place in places(record):
            for wrong in WRONG:
                forgery.path.write_text(json.dumps(changed(record, place, wrong)))
                where = f"{kind} {'.'.join(map(str, place))} = {wrong!a}"
                counts[outcome_of(forgery.read, where, forgery.path)] += 1
        for data in TEXTS:
            forgery.path.write_bytes(data)
            assert outcome_of(forgery.read, f"{kind} {data[:20]!a}", forgery.path) == "refused"
    finally:
        forgery.path.write_bytes(original)
    assert counts["refused"] > counts["accepted"] / 2, counts
    assert counts.total() >= 2 * len(WRONG)
    assert outcome_of(forgery.read, kind, forgery.path) == "accepted"
