"""Page of a training run: self-contained, and names stay text."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from afinar.cli import models as cli_models
from afinar.config.models import ModelsConfig
from afinar.dataset.reader import Dataset
from afinar.evaluation.comparison import EvaluatedRun
from afinar.models.registry.aliases import promote
from afinar.report.classes import class_rows
from afinar.report.confusion import confusion_matrix, mistake_gallery, most_confused
from afinar.report.training import compare_with_champion, training_page
from afinar.storage.arrow import from_parquet
from afinar.storage.open import open_store
from tests.report.conftest import CLASS, Compared, with_one_mistake
from tests.report.html import LONG, NASTY, RIGHT_TO_LEFT, Reader, assert_sound, section

TIMES = {
    "first_batch_s": 0.25,
    "waiting_s": 1.5,
    "copy_s": 0.125,
    "augment_s": 0.5,
    "prepare_s": 0.25,
    "compute_s": 7.75,
    "seconds": 10.0,
    "steps": 8,
    "limit": f"Computing took most of the time {NASTY}.",
}


@pytest.fixture(scope="module")
def rich(compared: Compared) -> EvaluatedRun:
    """A run that recorded recalls, a temperature, and times from its second epoch on."""
    run = with_one_mistake(compared.runs[1])
    metrics = copy.deepcopy(run.version.metrics)
    metrics["test"] |= {
        "recall": {CLASS: 0.875, "rust": None},
        "macro_f1": 0.8125,
        "auroc": 0.96875,
        "top5": None,
    }
    first = {name: value for name, value in run.history[0].items() if name != "ledger"}
    history = [first, *({**row, "ledger": TIMES} for row in run.history[1:])]
    return replace(
        run, version=replace(run.version, metrics=metrics, temperature=1.75), history=history
    )


@pytest.fixture(scope="module")
def page(compared: Compared, rich: EvaluatedRun) -> str:
    """The page of that run."""
    return training_page(f"Report of {NASTY}", compared.dataset, rich)


def test_names_that_look_like_markup_stay_text(page: str) -> None:
    reader = assert_sound(page)
    assert "b" not in Reader(section(page, "mistakes") + section(page, "pictures")).tags
    assert f"Report of {NASTY}" in reader.text
    assert CLASS in reader.text


def test_names_of_any_direction_and_length_are_shown_whole_in_their_title(page: str) -> None:
    pictures = Reader(section(page, "pictures"))
    for name in (RIGHT_TO_LEFT, LONG, '"><b>'):
        assert any(name in title for title in pictures.titles), name
    assert LONG not in pictures.text, "shortened"
    isolated = section(page, "pictures").count('<bdi class="file"')
    assert isolated == len(pictures.images), "no name reorders the text around it"


def test_page_has_everything_that_the_run_recorded(page: str, rich: EvaluatedRun) -> None:
    text = " ".join(Reader(page).text.split())
    tests = len(rich.test)
    for phrase in (
        f"model{rich.version.id}",
        f"1 of {tests} test pictures is wrong. 1 of 1 shown",
        "then the true class 2%",
        "mistakes.parquet",
        "Learning rate by epoch",
        "reliability diagram",
        "--backbone small_cnn",
        "0.812test macro F1",
        "0.969test AUROC",
        "temperature of 1.75",
        f"{TIMES['limit']}",
        "batch size8",
        "regimefull",
        f"torch{rich.version.lineage['libraries']['torch']}",
        f"trained on version 1 of {rich.version.lineage['dataset']['uri']}",
    ):
        assert phrase in text, phrase
    assert "top-5" not in text, "None for few classes"


def test_times_are_summed_over_the_epochs_that_recorded_them(page: str) -> None:
    rows = {row[0]: row[2:] for row in Reader(page).table_below("phase")}
    assert rows["computing"] == ["23.2", "75 %"], "three epochs of 7.75 s, of 31.125 s"
    epochs = Reader(page).table_below("epoch")
    assert [row[-1] for row in epochs] == ["", "10.00 s", "10.00 s", "10.00 s"]


def test_parts_that_an_older_run_did_not_record_are_left_out(compared: Compared) -> None:
    run = compared.runs[0]
    metrics = {
        **run.version.metrics,
        "test": {name: run.version.metrics["test"][name] for name in ("loss", "top1")},
    }
    history = [
        {name: value for name, value in row.items() if name != "ledger"} for row in run.history
    ]
    older = replace(run, version=replace(run.version, metrics=metrics), history=history)
    text = Reader(training_page("An older run", compared.dataset, older)).text
    for heading in ("Time by phase", "macro F1", "AUROC", "Operating points", "Learning rate"):
        assert heading not in text
    for heading in ("Confusion matrix", "Settings", "calibration error", "Results by class"):
        assert heading in text


def test_head_that_was_solved_has_a_table_and_no_curves(
    compared: Compared, rich: EvaluatedRun
) -> None:
    run = replace(rich, history=[{**rich.history[0], "epoch": 0}])
    page = training_page("Solved", compared.dataset, run)
    assert "<svg" not in section(page, "results")
    assert "<details open>" in section(page, "results")
    assert [row[0] for row in assert_sound(page).table_below("epoch")] == ["0"]


def test_operating_points_have_a_row_each_with_intervals_on_test(
    compared: Compared, rich: EvaluatedRun
) -> None:
    counts = {
        "true_positives": 9,
        "false_positives": 1,
        "false_negatives": 3,
        "true_negatives": 12,
        "precision": 0.9,
        "recall": 0.75,
    }
    binary = {
        "positive": CLASS,
        "average_precision": 0.8765,
        "points": [
            {
                "measure": "precision",
                "target": 0.95,
                "threshold": 0.625,
                "val": counts,
                "test": counts,
            },
            {"measure": "recall", "target": 0.99, "threshold": None, "val": None, "test": None},
        ],
        "curve": {
            "threshold": [0.9, 0.1],
            "precision": [1.0, 0.5],
            "recall": [0.5, 1.0],
            "false_positive_rate": [0.0, 1.0],
        },
    }
    metrics = copy.deepcopy(rich.version.metrics)
    metrics["test"]["binary"] = binary
    run = replace(rich, version=replace(rich.version, metrics=metrics))
    page = training_page("Two classes", compared.dataset, run)
    reader = assert_sound(page)
    assert reader.table_below("target on validation") == [
        [
            "precision at least 95.0%",
            "0.625",
            "90.0%",
            "75.0%",
            "90.0% (59.6% – 98.2%)",
            "75.0% (46.8% – 91.1%)",
        ],
        ["recall at least 99.0%", "not reached", "", "", "", ""],
    ]
    points = section(page, "points")
    assert "Average precision on test: 0.87" in points
    assert points.count("<svg") == 2
    assert CLASS in Reader(points).text


def many_classes(run: EvaluatedRun, count: int) -> EvaluatedRun:
    """Return a run on `count` classes: three, two and one pictures of three pairs are confused."""
    classes = [f"kind {number}" for number in range(count)]
    wrong = [(0, 1)] * 3 + [(5, 2)] * 2 + [(7, 8)]
    right = [(number, number) for number in range(10)]
    rows = [
        {
            "row": row,
            "sample_id": f"{row:02d}",
            "label": classes[true],
            "predicted": classes[guess],
            "score": 0.9 - row / 100,
        }
        for row, (true, guess) in enumerate(wrong + right)
    ]
    version = replace(run.version, classes=classes)
    return replace(run, version=version, test=pa.Table.from_pylist(rows))


@pytest.mark.parametrize(("count", "shape"), [(2, "table"), (100, "svg"), (400, "pairs")])
def test_confusions_of_any_number_of_classes_are_readable(
    compared: Compared, rich: EvaluatedRun, count: int, shape: str
) -> None:
    run = rich if count == 2 else many_classes(compared.runs[0], count)
    page = training_page("Classes", compared.dataset, run)
    assert_sound(page)
    confusion = section(page, "confusion")
    assert ('<table class="confusion">' in confusion) == (shape == "table")
    assert ('<svg class="heat"' in confusion) == (shape == "svg")
    if shape != "table":
        assert Reader(confusion).table_below("true", "predicted") == [
            ["kind 0", "kind 1", "3", "75.0 %"],
            ["kind 5", "kind 2", "2", "66.7 %"],
            ["kind 7", "kind 8", "1", "50.0 %"],
        ]
    if shape == "svg":
        assert confusion.count("<rect") == 1 + 10 + 3, "a frame, and cells with pictures only"
        assert "kind 0 predicted as kind 1: 3" in confusion


def test_cell_leads_to_its_pictures(page: str, rich: EvaluatedRun) -> None:
    classes = rich.version.classes
    (wrong,) = (row for row in rich.test.to_pylist() if row["label"] != row["predicted"])
    target = f"pair-{classes.index(wrong['label'])}-{classes.index(wrong['predicted'])}"
    assert f'href="#{target}">1</a>' in section(page, "confusion")
    group = section(page, "mistakes").partition(f'id="{target}"')[2]
    assert group.count("<img") == 1
    assert 'href="#class-0"' in section(page, "confusion"), "right ones lead to their class"


def test_mistakes_of_each_pair_come_before_second_ones(compared: Compared) -> None:
    gallery = mistake_gallery(compared.dataset, many_classes(compared.runs[0], 12), limit=4)
    shown = [(group.label, group.count, len(group.tiles)) for group in gallery.groups]
    assert shown == [("kind 0", 3, 2), ("kind 5", 2, 1), ("kind 7", 1, 1)]
    assert gallery.shown == 4
    assert gallery.groups[0].tiles[0].caption == "90%", "the highest score, of an older run"


def test_matrix_has_shares_of_rows() -> None:
    counts = np.array([[3, 1], [0, 0]])
    matrix = confusion_matrix(counts, ["a", "b"], {(0, 1): "pair-0-1", (1, 1): "class-1"})
    assert matrix is not None
    first, second = matrix.rows
    assert [cell.share for cell in first.cells] == [0.75, 0.25]
    assert [cell.target for cell in first.cells] == ["", "pair-0-1"]
    assert [cell.target for cell in second.cells] == ["", ""], "nothing to look at"
    assert [pair.share for pair in most_confused(counts, ["a", "b"], {})] == [0.25]


def test_class_rows_have_precision_recall_and_f1() -> None:
    counts = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])
    pictures = {split: Counter({"a": 9}) for split in ("train", "validation", "test")}
    rows = {row.name: row for row in class_rows(counts, ["a", "b", "c"], pictures, {})}
    assert (rows["a"].recall, rows["a"].precision) == (0.75, 0.6)
    assert rows["a"].f1 == pytest.approx(2 * 0.75 * 0.6 / 1.35)
    assert (rows["a"].train, rows["b"].train) == (9, 0)
    assert (rows["c"].recall, rows["c"].precision, rows["c"].f1) == (None, None, None)
    assert list(rows) == ["b", "a", "c"], "the lowest F1 first, classes without pictures last"


def test_champion_is_compared_on_common_pictures(compared: Compared) -> None:
    run = many_classes(compared.runs[0], 12)
    champion = replace(run, test=run.test.slice(2))
    comparison = compare_with_champion(run, champion)
    assert (comparison.common, comparison.test_total) == (14, 16)
    assert comparison.accuracy == comparison.champion_accuracy
    assert comparison.is_better is None

    worse = run.test.set_column(3, "predicted", pa.array(["kind 11"] * 16))
    comparison = compare_with_champion(run, replace(run, test=worse))
    assert (comparison.only_new, comparison.only_champion) == (10, 0)
    assert comparison.is_better
    text = Reader(
        training_page("New", compared.dataset, run, champion=replace(run, test=worse))
    ).words
    assert "Better. On 16 common test pictures this model is right for 62.5 %" in text
    assert "F1 against champion" in text

    others = pa.array([f"other {number}" for number in range(16)])
    stranger = replace(run, test=run.test.set_column(1, "sample_id", others))
    assert compare_with_champion(run, stranger).difference is None
    assert "Not comparable." in training_page("New", compared.dataset, run, champion=stranger)


def test_training_writes_page_mistakes_and_index(
    compared: Compared, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from afinar.report.training import write_training_page
    from afinar.training.driver import TrainOutcome
    from afinar.training.promotion import ChampionChoice
    from afinar.training.publish import TrainResult

    models = compared.dataset.store.root.removesuffix("/dataset") + "/models"
    store, version = open_store(models), compared.runs[1].version
    promote(store, 2, "a test")
    outcome = TrainOutcome(
        models=models,
        run=version.lineage["run"],
        version=version,
        result=TrainResult(),
        seconds=1.0,
        champion=ChampionChoice(champion=2, is_promoted=True, why="it is better by a test"),
    )
    write_training_page(outcome)
    write_training_page(outcome)  # as after an interruption

    page = store.get(f"{outcome.run}/report.html").decode()
    assert_sound(page)
    assert f"Comparison with the champion, model {compared.runs[0].version.id}" in page
    assert "Champion: it is better by a test." in page
    name = f"{outcome.run}/mistakes.parquet"
    mistakes = from_parquet(store.get(name), uri=name)
    assert len(mistakes) == int((~compared.runs[1].hits).sum())
    assert {"uri", "label", "predicted", "runner_up"} <= set(mistakes.column_names)

    index = assert_sound(store.get("index.html").decode())
    rows = index.table_below("model", "network")
    assert [row[0] for row in rows] == [
        f"model {compared.runs[1].version.id}champion",
        f"model {compared.runs[0].version.id}",
    ]
    assert f"{outcome.run}/report.html" in index.addresses

    cli_models.run(ModelsConfig(models=models, action="promote", version="1"))
    rows = Reader(store.get("index.html").decode()).table_below("model", "network")
    assert [row[0].endswith("champion") for row in rows] == [False, True]


def test_class_names_of_any_script_are_text_of_the_page(
    compared: Compared, rich: EvaluatedRun
) -> None:
    """Names are never drawn by us, whose fonts would lack most scripts: a browser finds one."""
    names = ["日本語のねこ", "狗🐕‍🦺"]
    renamed = dict(zip(rich.version.classes, names, strict=True))
    rows = [
        {**row, "label": renamed[row["label"]], "predicted": renamed[row["predicted"]]}
        for row in rich.test.to_pylist()
    ]
    run = replace(
        rich,
        test=pa.Table.from_pylist(rows, schema=rich.test.schema),
        version=replace(rich.version, classes=names),
    )
    page = training_page("قطة", compared.dataset, run)
    confusion = section(page, "confusion")
    matrix = Reader(confusion).table_below("true ↓ predicted →")
    assert [[int(cell) for cell in row[1:]] for row in matrix] == run.confusion.tolist()
    for name in names:
        assert confusion.count(f">{name}<") == 2, "a row and a column"


def test_page_of_a_thousand_classes_and_a_hundred_thousand_predictions_is_bounded(
    compared: Compared,
) -> None:
    run = thousand_classes(compared.dataset, compared.runs[1])
    page = training_page("Large", compared.dataset, run)
    assert len(page.encode()) < 10_000_000
    reader = assert_sound(page)
    assert len(reader.images) <= 400
    assert len(reader.table_below("true", "predicted")) == 100, "the most confused pairs"
    assert "200 of 10,000 shown" in reader.words


def thousand_classes(dataset: Dataset, run: EvaluatedRun) -> EvaluatedRun:
    """Return a run on 1,000 classes and 100,000 predictions, a tenth of them wrong."""
    rng = np.random.default_rng(0)
    classes = [f"class number {number}" for number in range(1000)]
    true = np.arange(100_000) % 1000
    predicted = true.copy()
    predicted[::10] = (true[::10] + 1 + rng.integers(0, 998, 10_000)) % 1000
    names = np.array(classes, dtype=object)
    test = pa.table(
        {
            "row": rng.integers(0, len(dataset.index), 100_000),
            "sample_id": [f"{number:06d}" for number in range(100_000)],
            "label": pa.array(names[true], pa.string()),
            "predicted": pa.array(names[predicted], pa.string()),
            "score": rng.random(100_000),
            "runner_up": pa.array(names[true], pa.string()),
            "runner_up_score": rng.random(100_000) / 2,
        }
    )
    return replace(run, version=replace(run.version, classes=classes), test=test)
