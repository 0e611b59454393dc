"""Sides that the benches of training refuse, and benches that a machine cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bench import __main__ as command
from tests.bench import hardware
from tests.bench.scaling import siblings
from tests.bench.sides.train_steps import Watch, waited
from tests.bench.stall import require_alike
from tests.bench.world import WrongBenchError

STEPS, BATCH, EPOCHS = 5, 4, 3
IMAGES = torch.zeros(BATCH, 3, 8, 8).to(memory_format=torch.channels_last)


def watched(pictures: int) -> Watch:
    """Simulate three epochs that pass so many pictures through the network before each step."""
    watch = Watch({"steps": STEPS, "batch": BATCH, "device": "cpu"})
    for _ in range(EPOCHS * STEPS):
        watch.passed(IMAGES[:pictures], IMAGES[:pictures].bfloat16())
        watch.stepped()
        if watch._count % STEPS == 0:
            watch.passed(IMAGES, IMAGES)  # validation between epochs belongs to no step
    return watch


def test_steps_are_timed_in_every_epoch_but_the_first() -> None:
    answer = watched(BATCH).answer()
    assert answer["steps"] == (EPOCHS - 1) * (STEPS - 2)
    assert answer["rate"] > 0
    assert (answer["dtypes"], answer["layouts"]) == (["bfloat16"], ["channels last"])


@pytest.mark.parametrize(
    "pictures", [0, BATCH - 1], ids=["none, with cached features", "fewer than the batch"]
)
def test_loop_that_passes_too_few_pictures_is_refused(pictures: int) -> None:
    with pytest.raises(
        AssertionError, match=f"{6 * pictures} pictures went through the network in 6 steps of 4"
    ):
        watched(pictures).answer()


@pytest.mark.parametrize("what", ["steps", "dtypes", "layouts", "device"])
def test_sides_that_differ_are_refused(what: str) -> None:
    one = watched(BATCH).answer()
    require_alike([one], [dict(one)])
    with pytest.raises(WrongBenchError, match=f"differ in {what}"):
        require_alike([one], [one | {what: "other"}])


def test_waiting_is_the_time_without_computing() -> None:
    first = {"ledger": {"compute_s": 0.0, "seconds": 100.0}}
    assert waited([first, {"ledger": {"compute_s": 3.0, "seconds": 4.0}}]) == pytest.approx(0.25)
    assert waited([{"seconds": 4.0}, {"seconds": 4.0}]) is None


def test_bench_that_the_machine_cannot_run_is_neither_met_nor_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hardware, "has_gpu", lambda: False)
    monkeypatch.setattr(hardware, "has_amx", lambda: False)
    assert command.main(["gpu", "bfloat16"]) == 3
    output = capsys.readouterr().out
    assert output == "gpu: no GPU: not measured\nbfloat16: no AMX: not measured\n"


@pytest.mark.parametrize(
    ("one", "other", "wanted"), [("0-1", "0-1", "two threads of one core"), ("0", "1", "two cores")]
)
def test_threads_of_one_core_are_told_from_two_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, wanted: str
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    for number, text in enumerate((one, other)):
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(f"{text}\n")
    assert siblings(tmp_path).startswith(wanted)
