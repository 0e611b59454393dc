"""A fortnight of nights on crops of real photographs, and what it leaves behind.

`test_kills.py` has the nights that are killed, suspended and started twice, in real processes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from afinar.cli.main import main
from afinar.config.nightly import GateRules, WatchRules
from afinar.models.registry.aliases import promotions
from afinar.models.registry.history import decisions
from afinar.models.registry.versions import find_model
from afinar.nightly.records import NightRecord, read_nights
from afinar.predictions.part_reader import open_predictions
from afinar.storage.open import open_store
from afinar.storage.versions import versions
from tests.nightly.world import REGIONS, PhotoWorld

NOISE = 60.0


@dataclass
class Fortnight:
    """The world, its nights, and the champion that should have labelled each archive picture."""

    world: PhotoWorld
    nights: dict[str, NightRecord] = field(default_factory=dict)
    labelled_by: dict[str, str] = field(default_factory=dict)

    def night(self, name: str, **options: object) -> NightRecord:
        """Run a night with three more pictures in the archive, and note who labels them."""
        self.world.archive(3, NOISE)
        record = self.nights[name] = self.world.night(**options)
        champion = find_model(str(self.world.root / "models")).version.id
        for path in (self.world.root / "archive").iterdir():
            self.labelled_by.setdefault(str(path), champion)
        return record

    def models(self, *arguments: str) -> None:
        assert main(["models", str(self.world.root / "models"), *arguments]) == 0


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory: pytest.TempPathFactory) -> Fortnight:
    # A level at which a night that adds a few pictures is not promoted by luck. The limits of
    # classes and confidence are those of larger test sets.
    gate = GateRules(alpha=0.02, max_class_drop=0, max_loss_increase=0)
    world = PhotoWorld(tmp_path_factory.mktemp("fortnight"), gate=gate)
    run = Fortnight(world)

    world.upload_all(12, noise=NOISE)
    run.night("first")
    world.upload_all(90, noise=NOISE)
    run.night("growth")
    run.night("no change")

    for number in range(4):
        broken = world.root / "uploads" / "roofs" / f"broken-{number}.jpg"
        broken.write_bytes(b"\xff\xd8\xff\xe0 no picture" + bytes(number))
    world.upload_all(3, noise=NOISE)
    run.night("corrupt")

    # A camera whose uploads are mislabelled: 30 % of its pictures.
    world.upload("petals", 70, folder="camera-b", noise=NOISE)
    world.upload("petals", 30, folder="camera-b", true="leaves", noise=NOISE)
    run.night("mislabelled")

    wrong = [
        path
        for label, true in (("petals", "leaves"), ("leaves", "petals"), ("roofs", "leaves"))
        for path in world.upload(label, 36, folder="camera-c", true=true, noise=NOISE)
    ]
    run.night("mislabelled unwatched", watch=WatchRules(labels=False, inputs=False))
    for path in wrong:
        path.unlink()

    shutil.move(world.root / "uploads" / "stones", world.root / "stones")
    run.night("deleted class")
    shutil.move(world.root / "stones", world.root / "uploads" / "stones")

    world.upload("sky", 30, noise=NOISE)
    run.night("new class")
    run.models("promote", "latest", "--why", "the sky is wanted")
    run.night("promoted by hand")
    run.models("rollback", "--why", "too many skies")
    run.night("rolled back")

    shutil.rmtree(world.root / "uploads" / "sky")
    world.upload_all(4, noise=NOISE)
    run.night("anyway", promote="anyway", relabel="all", gate=GateRules(mode="hold"))
    return run


def test_outcomes(fortnight: Fortnight) -> None:
    outcomes = {name: record.outcome for name, record in fortnight.nights.items()}
    assert outcomes == {
        "first": "promoted",
        "growth": "promoted",
        "no change": "no change",
        "corrupt": "refused",
        "mislabelled": "refused",
        "mislabelled unwatched": "refused",
        "deleted class": "refused",
        "new class": "held",
        "promoted by hand": "no change",
        "rolled back": "no change",
        "anyway": "promoted",
    }, {name: record.reasons for name, record in fortnight.nights.items()}


def test_broken_uploads_are_counted_and_the_night_goes_on(fortnight: Fortnight) -> None:
    ingest = fortnight.nights["corrupt"].steps["ingest"]
    assert (ingest["rejects"], ingest["added"]) == (4, 12)


def test_mislabelled_uploads_are_held_out_and_queued_for_review(fortnight: Fortnight) -> None:
    record = fortnight.nights["mislabelled"]
    watch = record.steps["watch"]
    assert any("camera-b" in alarm for alarm in watch["alarms"]), watch
    assert 20 <= watch["held_pictures"] <= 45
    assert record.steps["train"]["held"] == watch["held_pictures"]
    form = fortnight.world.root / "nights" / record.night / "review.csv"
    assert form.read_text().startswith("uri,label,given,predicted\n")
    assert form.read_text().count("petals,leaves") >= 20


def test_without_the_watch_the_gate_refuses_what_was_trained_on_them(fortnight: Fortnight) -> None:
    record = fortnight.nights["mislabelled unwatched"]
    assert record.steps["train"]["held"] == fortnight.nights["mislabelled"].steps["train"]["held"]
    assert record.steps["gate"]["gain"] < 0.05
    assert any("not shown to be better" in reason for reason in record.reasons)


def test_classes_that_come_and_go_are_named(fortnight: Fortnight) -> None:
    reasons = fortnight.nights["deleted class"].reasons
    assert any("lost classes of the champion: stones" in reason for reason in reasons)
    record = fortnight.nights["new class"]
    assert any("new classes, compared on the common ones only: sky" in r for r in record.reasons)
    assert record.steps["gate"]["test_pictures"] > 20, "the common classes were compared"


def test_every_move_of_the_champion_and_every_refusal_is_explained(fortnight: Fortnight) -> None:
    store = open_store(str(fortnight.world.root / "models"))
    nights = read_nights(open_store(str(fortnight.world.root / "nights")))
    assert [record.night for record in nights] == [n.night for n in fortnight.nights.values()]
    assert all(record.reasons and all(record.reasons) for record in nights)

    by_night = [record for record in nights if record.outcome == "promoted"]
    moved = promotions(store)
    assert len(moved) == len(by_night) + 2, "and two by hand"
    explained = [promotion.why for promotion in moved]
    assert all(any(record.night in why for why in explained) for record in by_night)
    assert {"the sky is wanted", "too many skies"} <= set(explained)
    assert "promoted anyway, the gate says" in explained[-1]

    candidates = {record.candidate: record for record in nights if record.candidate is not None}
    assert sorted(candidates) == versions(store, "versions"), "one version a candidate"
    for number, record in candidates.items():
        (decision,) = decisions(store, number)
        assert (decision.outcome, decision.reasons) == (record.outcome, record.reasons)


def test_decisions_on_the_frozen_test_set_are_counted(fortnight: Fortnight) -> None:
    gates = [record.steps.get("gate", {}) for record in fortnight.nights.values()]
    decided = [gate["decision"] for gate in gates if gate.get("test_set") is not None]
    assert decided == list(range(1, len(decided) + 1))
    assert {gate["test_set"] for gate in gates if gate.get("test_set") is not None} == {1}


def test_every_picture_is_labelled_once_by_the_champion_of_its_night(fortnight: Fortnight) -> None:
    folder = str(fortnight.world.root / "predictions")
    last = open_predictions(folder)
    champion = find_model(str(fortnight.world.root / "models")).version.id
    assert last.model.endswith(champion)
    everything = sorted(fortnight.labelled_by)
    assert last.table.column("uri").to_pylist() == everything, "relabel = all, by the new champion"

    found: dict[str, list[str]] = {}
    for name in last.partitions:
        if name != last.partition:
            for row in open_predictions(folder, name).table.to_pylist():
                found.setdefault(row["uri"], []).append(row["model_version"])
    before = {uri: [by] for uri, by in fortnight.labelled_by.items() if by != champion}
    assert found == before


def test_a_night_without_change_says_so(fortnight: Fortnight) -> None:
    record = fortnight.nights["no change"]
    assert record.reasons == [
        "no labelled picture has changed since the last candidate was trained"
    ]
    assert record.steps["label"]["labelled"] == 3
    assert "rehearse" not in record.steps


def test_pages_name_every_night(fortnight: Fortnight) -> None:
    nights = fortnight.world.root / "nights"
    index = (nights / "index.html").read_text()
    for record in fortnight.nights.values():
        assert f'href="{record.night}/report.html"' in index
        assert Path(nights / record.night / "report.html").exists()
    assert "too many skies" in index
    assert set(REGIONS) <= set(find_model(str(fortnight.world.root / "models")).version.classes)
