"""Nights: their steps, what they decide, and what they leave behind, without Ray."""

from __future__ import annotations

import json
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from afinar.cli.nightly import describe
from afinar.config.base import JobConfig
from afinar.config.nightly import GateRules, HookRules, NightlyConfig
from afinar.models.registry.aliases import champion_number, promote
from afinar.models.registry.versions import get_model
from afinar.nightly.frozen import renew_test
from afinar.nightly.hooks import SECRET, sign
from afinar.nightly.lock import LeaseLostError
from afinar.nightly.night import run_night
from afinar.nightly.records import NightRecord, read_nights
from afinar.nightly.steps import Record, Services, Steps
from afinar.predictions.part_reader import open_predictions
from afinar.storage.open import open_store
from afinar.storage.versions import latest, publish, versions
from afinar.training.distributed import Group
from afinar.training.task import TrainTask
from afinar.training.worker import run_worker
from afinar.units.executor import Executor, InlineExecutor

COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 200)}
PX = 32
TRAINING = """
input_size = 64
epochs = 3
batch_size = 16
workers = 1
learning_rate = 0.003
precision = "float32"
"""


class World:
    """Pictures of an uploads folder and an archive, and the nights over them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rng = np.random.default_rng(0)
        self.count = 0

    def upload(self, label: str, count: int, folder: str = "", true: str = "") -> list[Path]:
        """Write pictures of a class, whose colour is that of `true` if it is given."""
        paths = []
        for _ in range(count):
            self.count += 1
            path = self.root / "uploads" / label / folder / f"{self.count:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            self._draw(true or label).save(path)
            paths.append(path)
        return paths

    def archive(self, count: int) -> None:
        """Write pictures of all classes without labels."""
        folder = self.root / "archive"
        folder.mkdir(exist_ok=True)
        for number in range(count):
            self.count += 1
            label = list(COLOURS)[number % len(COLOURS)]
            self._draw(label).save(folder / f"{self.count:04}.png")

    def _draw(self, label: str) -> Image.Image:
        colour = np.array(COLOURS.get(label, (120, 120, 120)))
        noise = self.rng.normal(0, 60, (PX, PX, 3))
        return Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8))

    def config(self, **options: Any) -> NightlyConfig:
        places = {
            name: str(self.root / folder)
            for name, folder in (
                ("source", "uploads"), ("dataset", "dataset"), ("models", "models"),
                ("nights", "nights"), ("archive", "archive"), ("predictions", "predictions"),
            )
        }  # fmt: skip
        values = {"backbone": "small_cnn", "weights": "none", "regime": "scratch", "size": PX}
        training = self.root / "training.toml"
        training.write_text(TRAINING)
        return NightlyConfig(**{**places, **values, "training": str(training), **options})

    def night(self, services: Services | None = None, **options: Any) -> NightRecord:
        return run_night(self.config(**options), services or SERVICES)

    @property
    def champion(self) -> int | None:
        return champion_number(open_store(str(self.root / "models")))


def launch(task: TrainTask) -> None:
    run_worker(task, Group())


def executor(config: JobConfig) -> Executor:
    del config
    return InlineExecutor()


SERVICES = Services(executor=executor, launch=launch)


@pytest.fixture(scope="module")
def first_night(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Return a world after its first night."""
    world = World(tmp_path_factory.mktemp("night"))
    for label in COLOURS:
        world.upload(label, 40)
    world.archive(12)
    record = world.night()
    assert record.outcome == "promoted", record.reasons
    return world


@pytest.fixture
def world(first_night: World, tmp_path: Path) -> Iterator[World]:
    """Return a copy of the world after its first night; absolute paths stay those of the copy."""
    backup = tmp_path / "backup"
    shutil.copytree(first_night.root, backup, symlinks=True)
    count = first_night.count
    yield first_night
    shutil.rmtree(first_night.root)
    shutil.copytree(backup, first_night.root, symlinks=True)
    first_night.count = count


def test_the_first_night_promotes_a_model_and_labels_the_archive(world: World) -> None:
    (record,) = read_nights(open_store(str(world.root / "nights")))

    assert record.champion == record.candidate == world.champion == 1
    assert record.steps["label"]["labelled"] == 12
    assert set(record.steps) == {
        "start", "ingest", "watch", "train", "rehearse", "evaluate", "gate", "promote", "label"
    }  # fmt: skip


def test_a_night_without_change_does_nothing(world: World) -> None:
    record = world.night()

    assert record.outcome == "no change"
    assert world.champion == 1
    assert record.steps["label"]["labelled"] == 0


def test_summary_is_described_with_and_without_an_archive(world: World) -> None:
    with_archive, without = world.night(), world.night(archive="", predictions="")
    texts = [
        describe(asdict(night) | {"report": "report.html"}) for night in (with_archive, without)
    ]
    assert all("no change" in text for text in texts)
    assert [bool(re.search("labelled +0 of 12 in the archive", text)) for text in texts] == [
        True,
        False,
    ]


def test_new_pictures_of_the_archive_are_labelled_once(world: World) -> None:
    world.archive(3)
    record = world.night()

    assert record.outcome == "no change"
    assert record.steps["label"]["labelled"] == 3
    table = open_predictions(str(world.root / "predictions")).table
    assert len(table) == len(set(table.column("uri").to_pylist())) == 15


def test_a_candidate_that_is_not_better_is_refused_with_its_numbers(world: World) -> None:
    world.upload("red", 6)
    record = world.night()

    assert record.outcome in {"refused", "promoted"}
    gate = record.steps["gate"]
    assert gate["decision"] == 1
    assert gate["test_pictures"] > 5
    assert record.reasons
    if record.outcome == "refused":
        assert world.champion == 1
        assert any("not shown to be better" in reason for reason in record.reasons)
        assert record.steps["rehearse"]["skipped"] == "; ".join(record.reasons)
    else:
        assert record.steps["rehearse"]["labelled"] > 0


def test_a_candidate_that_is_promoted_anyway_is_rehearsed(world: World) -> None:
    world.upload("red", 2)
    record = world.night(promote="anyway")
    assert record.outcome == "promoted"
    assert record.steps["rehearse"]["labelled"] > 0
    assert record.steps["gate"]["decision"] == 1


def test_each_decision_on_a_test_set_is_counted(world: World) -> None:
    decisions = []
    for _ in range(2):
        world.upload("red", 2)
        decisions.append(world.night(gate=GateRules(mode="hold")).steps["gate"]["decision"])

    assert decisions == [1, 2]


def test_mislabelled_uploads_are_held_out(world: World) -> None:
    world.upload("red", 10, "good")
    world.night(gate=GateRules(mode="hold"))
    wrong = world.upload("red", 14, "bad", true="blue")
    world.upload("green", 3)

    record = world.night(gate=GateRules(mode="hold"))

    watch = record.steps["watch"]
    assert watch["alarms"]
    assert watch["held_pictures"] >= 10
    assert record.steps["train"]["held"] == watch["held_pictures"]
    assert len(wrong) >= watch["held_pictures"]


def test_a_deleted_class_is_refused(world: World) -> None:
    shutil.rmtree(world.root / "uploads" / "blue")
    record = world.night()

    assert record.outcome == "refused"
    assert any("lost classes of the champion: blue" in reason for reason in record.reasons)
    assert world.champion == 1


def test_a_new_class_is_held(world: World) -> None:
    COLOURS["grey"] = (120, 120, 120)
    try:
        world.upload("grey", 20)
    finally:
        del COLOURS["grey"]
    record = world.night()

    assert record.outcome in {"held", "refused"}
    assert any("new classes" in check["reason"] for check in record.steps["gate"]["checks"])
    assert world.champion == 1


def test_promote_anyway_is_recorded(world: World) -> None:
    world.upload("red", 3)
    record = world.night(promote="anyway", gate=GateRules(mode="hold"))

    assert record.outcome == "promoted"
    assert "promoted anyway" in record.reasons[0]
    assert world.champion == 2


@pytest.mark.parametrize("step", ["ingest", "train", "gate", "promote"])
def test_a_night_that_ends_after_any_step_is_continued(
    world: World, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from afinar.nightly.records import Night

    class KilledError(BaseException):
        pass

    complete = Night.complete

    def complete_and_die(self: Night, name: str, record: dict[str, Any]) -> dict[str, Any]:
        result = complete(self, name, record)
        if name == step:
            raise KilledError
        return result

    world.upload("red", 4)
    monkeypatch.setattr(Night, "complete", complete_and_die)
    with pytest.raises(KilledError):
        world.night(promote="anyway")
    monkeypatch.undo()

    record = world.night(promote="anyway")

    assert record.outcome == "promoted"
    assert world.champion == record.candidate == 2
    assert len(read_nights(open_store(str(world.root / "nights")))) == 2
    versions = list((world.root / "models" / "versions").iterdir())
    assert len(versions) == 2


def test_a_night_that_was_suspended_between_check_and_write_moves_no_alias(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another night takes the lock over just after this one has checked that it holds it."""
    models = open_store(str(world.root / "models"))
    move = Steps._move

    def suspended(self: Steps, *arguments: Any) -> Record:
        promote(models, 1, "unchanged: the lock of a killed night was taken over")
        return move(self, *arguments)

    monkeypatch.setattr(Steps, "_move", suspended)
    world.upload("red", 3)
    record = world.night(promote="anyway")

    assert record.outcome == "held"
    assert "at the same time" in record.reasons[0]
    assert world.champion == 1


def test_a_night_that_was_suspended_during_its_training_publishes_nothing(world: World) -> None:
    nights = open_store(str(world.root / "nights"))

    def train_and_lose_the_lock(task: TrainTask) -> None:
        launch(task)
        current = latest(nights, "lock")
        assert current is not None
        record = {**current[1], "actor": "somebody@else"}
        assert publish(nights, "lock", current[0] + 1, record, "another owner")

    world.upload("red", 4)
    with pytest.raises(LeaseLostError, match="held by somebody@else"):
        world.night(Services(executor=executor, launch=train_and_lose_the_lock))

    assert versions(open_store(str(world.root / "models")), "versions") == [1]
    assert len(read_nights(nights)) == 1, "its outcome is recorded by the night that took over"


def test_a_step_that_fails_ends_the_night_and_the_next_one_decides_on_its_candidate(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.upload("red", 4)
    with monkeypatch.context() as patch:
        patch.setattr("afinar.nightly.steps.decide", lambda *_: 1 / 0)
        failed = world.night()
    assert (failed.outcome, failed.exit_code) == ("failed", 1)
    assert failed.reasons == ["ZeroDivisionError: division by zero"]
    assert failed.candidate == 2

    record = world.night(promote="anyway")
    assert (record.outcome, record.candidate) == ("promoted", 2)
    assert record.steps["train"]["trained_by"] == failed.night
    assert world.night().outcome == "no change"


def test_a_source_that_is_gone_is_a_failed_night_with_exit_code_2(world: World) -> None:
    record = world.night(source=str(world.root / "nowhere"))
    assert (record.outcome, record.exit_code) == ("failed", 2)
    assert "nowhere" in record.reasons[0]
    assert world.night().outcome == "no change"


def test_a_killed_night_is_not_continued_with_other_options(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    world.upload("red", 4)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "rehearse", killed)
        with pytest.raises(KeyboardInterrupt):
            world.night()

    record = world.night(gate=GateRules(mode="hold"))
    _, failed, _ = read_nights(open_store(str(world.root / "nights")))
    assert "changed options: gate" in failed.reasons[0]
    assert record.steps["train"]["trained_by"] == failed.night


def test_a_candidate_may_begin_with_the_champion(world: World) -> None:
    world.upload("red", 3)
    world.night(regime="full", begin="champion", promote="anyway")
    version = get_model(open_store(str(world.root / "models")), 2)
    assert version.lineage["parent"].startswith(f"{world.root}/models@1-")


def test_labels_that_were_reviewed_are_trained_on(world: World) -> None:
    world.upload("red", 10, "good")
    world.night(gate=GateRules(mode="hold"))
    wrong = world.upload("red", 14, "bad", true="blue")
    held = world.night(gate=GateRules(mode="hold")).steps["watch"]["held_pictures"]
    assert held >= 10

    rows = "\n".join(f"{path}" for path in wrong)
    (world.root / "nights" / "reviewed.csv").write_text(f"uri\n{rows}\n")
    train = world.night(gate=GateRules(mode="hold")).steps["train"]
    assert (train["candidate"] is None, train["held"]) == (False, 0)


def test_hooks_are_told_with_a_signature(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers["X-Afinar-Signature"], body))
            # The first try fails.
            self.send_response(503 if len(received) == 1 else 200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    monkeypatch.setenv(SECRET, "s3cret")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    told, script = tmp_path / "told.json", tmp_path / "tell.py"
    script.write_text("import sys; open(sys.argv[1], 'w').write(sys.stdin.read())")
    hooks = HookRules(
        url=f"http://127.0.0.1:{server.server_port}/",
        command=f"{sys.executable} {script} {told}",
        on=("no change",),
    )
    try:
        record = world.night(hooks=hooks)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    (_, first), (signature, body) = received
    assert first == body
    assert signature == sign(body, "s3cret")
    message = json.loads(body)
    assert (message["outcome"], message["night"]) == ("no change", record.night)
    assert message["report"].endswith(f"{record.night}/report.html")
    assert json.loads(told.read_text()) == message


def test_a_new_test_set_starts_the_counting_again(world: World) -> None:
    hold = GateRules(mode="hold")
    world.upload("red", 2)
    world.night(gate=hold)
    test = renew_test(world.config())
    assert (test.number, test.pictures > 5) == (2, True)

    world.upload("red", 2)
    gate = world.night(gate=hold).steps["gate"]
    assert (gate["test_set"], gate["decision"], gate["level"]) == (2, 1, 0.05)
