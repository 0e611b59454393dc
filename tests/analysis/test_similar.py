"""`afinar similar` on an archive with copies, contradictions and wrong labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afinar.analysis.nearest import find_nearest
from afinar.analysis.similar import SimilarOutcome, run_similar
from afinar.analysis.tables import PAIRS, PICTURES
from afinar.cli.main import main
from afinar.comparison.leaks import find_leaks
from afinar.config.forget import ForgetConfig
from afinar.config.ingest import IngestConfig
from afinar.config.similar import SimilarConfig
from afinar.dataset.reader import open_dataset
from afinar.errors import RequestError
from afinar.features.reader import list_all
from afinar.ingestion.driver import run_ingest
from afinar.ingestion.forget import run_forget
from afinar.pictures.rejects import PictureError
from afinar.report.dataset import record_ingest
from afinar.report.similar import record_similar
from afinar.units.executor import InlineExecutor
from tests.archives import ingest
from tests.conftest import TINTS
from tests.datasets import values_by_file
from tests.evaluation.scenes import encoded, scene
from tests.executors import RecordingExecutor
from tests.report.html import Reader

COPIES = {f"copy-{number}.jpg": f"{number:03d}.jpg" for number in range(8)}
NASTY = "<b>&.jpg"


def picture(seed: int, label: str) -> Image.Image:
    """Return a scene in the colour of its class."""
    tint = Image.new("RGB", (120, 90), TINTS[label])
    return Image.blend(scene(seed, 120, 90), tint, 0.5)


def make_pictures(folder: Path) -> Path:
    """Write 30 pictures of each class, eight copies, and two pictures in the wrong class."""
    for number in range(60):
        label = "rust" if number % 2 else "moss"
        placed = {58: "rust", 59: "moss"}.get(number, label)  # two wrong labels
        (folder / placed).mkdir(parents=True, exist_ok=True)
        name = NASTY if number == 58 else f"{number:03d}.jpg"
        picture(number, label).save(folder / placed / name, quality=92)
    for number in range(8):
        label = "rust" if number % 2 else "moss"
        copy = encoded(picture(number, label), 60)
        # The copy of picture 7 has another label.
        placed = "moss" if number == 7 else label
        copy.save(folder / placed / f"copy-{number}.jpg", quality=60)
    shutil.copy(folder / "moss" / "010.jpg", folder / "moss" / "same-bytes.jpg")
    return folder


@dataclass(frozen=True)
class Analysed:
    pictures: Path
    dataset: str
    config: SimilarConfig
    outcome: SimilarOutcome
    summary: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.summary["report"]).parent


@pytest.fixture(scope="module")
def analysed(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    folder = tmp_path_factory.mktemp("similar")
    pictures = make_pictures(folder / "pictures")
    dataset = str(folder / "dataset")
    ingest(pictures, dataset, split="0.4,0.3,0.3")
    config = SimilarConfig(
        dataset=dataset, backbone="small_cnn", weights=weights, input_size=64, neighbours=5
    )
    outcome = run_similar(config, InlineExecutor())
    return Analysed(pictures, dataset, config, outcome, record_similar(config, outcome))


def test_all_copies_are_found_and_nothing_else(analysed: Analysed) -> None:
    pairs = pq.read_table(analysed.summary["files"]["pairs"], schema=PAIRS)
    found = {
        frozenset((Path(row["uri"]).name, Path(row["other_uri"]).name)) for row in pairs.to_pylist()
    }
    assert found == {frozenset(pair) for pair in COPIES.items()}
    assert analysed.summary["duplicates"]["groups"] == 8
    assert analysed.summary["duplicates"]["pictures"] == 16
    assert analysed.summary["duplicates"]["different_labels"] == 1


def test_comparisons_and_ingests_note_the_same_leaks(analysed: Analysed, tmp_path: Path) -> None:
    dataset, count = open_dataset(analysed.dataset), analysed.summary["leaks"]["test_pictures"]
    (features,) = list_all(analysed.dataset)
    found = find_leaks(dataset, features)
    assert (found.leaked, found.searched) == (count, found.test)
    assert f"{count} of {found.test} test pictures have a near-duplicate" in found.describe()

    copy = tmp_path / "dataset"
    shutil.copytree(analysed.dataset, copy)
    config = IngestConfig(
        source=str(analysed.pictures), dataset=str(copy), size=64, split="0.4,0.3,0.3"
    )
    new = analysed.pictures / "moss" / "new.jpg"
    picture(4711, "moss").save(new)
    try:
        summary = record_ingest(config, run_ingest(config, InlineExecutor()))
    finally:
        new.unlink()  # other tests ingest the same pictures
    (note,) = (note for note in summary["notes"] if "near-duplicate" in note)
    assert f"{count} test pictures" in note
    assert "near-duplicate in train or validation" in Path(summary["report"]).read_text()


def test_leaks_are_the_pairs_in_different_splits(analysed: Analysed) -> None:
    splits = values_by_file(open_dataset(analysed.dataset).index, "split")
    leaks = [pair for pair in COPIES.items() if splits[pair[0]] != splits[pair[1]]]
    assert leaks, "the archive has none: give another seed of the split"
    assert analysed.summary["leaks"]["pairs"] == len(leaks)
    assert sum(analysed.summary["leaks"]["by_splits"].values()) == len(leaks)
    in_test = {name for pair in leaks for name in pair if splits[name] == "test"}
    assert analysed.summary["leaks"]["test_pictures"] == len(in_test)


def test_the_next_version_keeps_copies_in_one_split(analysed: Analysed, tmp_path: Path) -> None:
    dataset = str(tmp_path / "dataset")
    shutil.copytree(analysed.dataset, dataset)
    groups = analysed.summary["files"]["groups"]
    ingest(analysed.pictures, dataset, split="0.4,0.3,0.3", group=groups)
    splits = values_by_file(open_dataset(dataset).index, "split")
    assert all(splits[copy] == splits[name] for copy, name in COPIES.items())
    again = SimilarConfig(**{**vars(analysed.config), "dataset": dataset})
    outcome = run_similar(again, InlineExecutor())
    assert len(outcome.leaks) == 0
    # The groups are the dataset's by now, and the file of the second run keeps them.
    second = record_similar(again, outcome)["files"]["groups"]
    assert Path(second).read_bytes() == Path(groups).read_bytes()


def test_groups_that_the_dataset_has_are_joined(analysed: Analysed, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    rows = {"000.jpg": "a", "001.jpg": "b", "copy-1.jpg": "c", "020.jpg": "c", "021.jpg": "d"}
    labels = {"000.jpg": "moss", "020.jpg": "moss"}
    lines = [f"{labels.get(name, 'rust')}/{name},{group}" for name, group in rows.items()]
    table.write_text("\n".join(["uri,group", *lines]))
    ingest(analysed.pictures, tmp_path / "dataset", group=str(table))
    config = SimilarConfig(**{**vars(analysed.config), "dataset": str(tmp_path / "dataset")})
    summary = record_similar(config, run_similar(config, InlineExecutor()))
    groups = values_by_file(pyarrow.csv.read_csv(summary["files"]["groups"]), "group")
    assert groups["000.jpg"] == groups["copy-0.jpg"] == "a"
    # The copy of picture 1 is of group c, so b and c are one group, with all its pictures.
    assert {groups[name] for name in ("001.jpg", "copy-1.jpg", "020.jpg")} == {"b"}
    assert groups["021.jpg"] == "d"
    assert groups["002.jpg"] == groups["copy-2.jpg"]
    assert groups["002.jpg"].startswith("similar-")
    assert "030.jpg" not in groups


def test_wrong_labels_come_first_and_the_form_leaves_labels_to_people(analysed: Analysed) -> None:
    pictures = pq.read_table(analysed.summary["files"]["table"], schema=PICTURES)
    ranks = values_by_file(pictures, "label_rank")
    assert {ranks[NASTY], ranks["059.jpg"]} <= {1, 2, 3, 4}
    form = pyarrow.csv.read_csv(analysed.summary["files"]["corrections"])
    assert form.column_names == ["uri", "label", "predicted", "score"]
    assert form.column("label").null_count == len(form)
    assert values_by_file(form, "predicted")[NASTY] == "moss"
    assert analysed.summary["labels"]["flagged"] == len(form)
    # Copies of the same bytes are one content: both rows have its rank.
    assert ranks["same-bytes.jpg"] == ranks["010.jpg"]


def test_a_form_that_people_filled_in_corrects_these_labels_only(
    analysed: Analysed, tmp_path: Path
) -> None:
    form = pyarrow.csv.read_csv(analysed.summary["files"]["corrections"]).to_pylist()
    filled = tmp_path / "corrections.csv"
    lines = [f'"{row["uri"]}",{"moss" if NASTY in row["uri"] else ""}' for row in form]
    filled.write_text("\n".join(["uri,label", *lines]))
    dataset = str(tmp_path / "dataset")
    shutil.copytree(analysed.dataset, dataset)
    before = values_by_file(open_dataset(dataset).index, "label")
    ingest(analysed.pictures, dataset, split="0.4,0.3,0.3", add_labels=str(filled))
    after = values_by_file(open_dataset(dataset).index, "label")
    assert after == {**before, NASTY: "moss"}


def test_pages_say_what_to_do_and_names_stay_text(analysed: Analysed) -> None:
    html = (analysed.folder / "report.html").read_text()
    page = Reader(html)
    assert "About half of such labels are really wrong" in page.text
    assert "--group" in page.text
    assert NASTY not in html
    kinds = ("data:", "file:", "#", "labels.html")
    assert all(address.startswith(kinds) for address in page.addresses)
    form = (analysed.folder / "labels.html").read_text()
    assert NASTY not in form
    assert "Expect about half of them to be right" in Reader(form).text
    assert Reader(form).tags.count("fieldset") == analysed.summary["labels"]["flagged"]
    assert json.loads((analysed.folder / "summary.json").read_text()) == analysed.summary


def test_a_second_run_computes_no_feature(analysed: Analysed) -> None:
    executor = RecordingExecutor()
    config = SimilarConfig(dataset=analysed.dataset, neighbours=5)  # the backbone is `auto`
    outcome = run_similar(config, executor)
    assert executor.uris == []
    np.testing.assert_array_equal(outcome.duplicates.pairs, analysed.outcome.duplicates.pairs)


def test_command_prints_a_table_or_one_json_object(
    analysed: Analysed, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["similar", analysed.dataset, "--neighbours", "5"]) == 0
    text = capfd.readouterr().out
    assert "16 pictures in 8 groups" in text
    assert "about half of them really are" in text
    query = str(analysed.pictures / "moss" / "copy-0.jpg")
    assert main(["similar", analysed.dataset, query, "--json"]) == 0
    summary = json.loads(capfd.readouterr().out)
    assert [Path(row["uri"]).name for row in summary["nearest"][:2]] == ["copy-0.jpg", "000.jpg"]
    assert len(summary["nearest"]) == 10
    assert main(["similar", analysed.dataset, query]) == 0
    assert "000.jpg" in capfd.readouterr().out


def test_nearest_of_a_new_picture_is_its_original(
    analysed: Analysed, weights: str, tmp_path: Path
) -> None:
    new = tmp_path / "new.png"
    encoded(picture(12, "moss"), 70).save(new)

    def nearest(**options: Any) -> dict[str, Any]:
        config = SimilarConfig(dataset=analysed.dataset, picture=str(new), **options)
        return find_nearest(config)

    found = nearest(weights=weights, neighbours=3)
    assert Path(found["nearest"][0]["uri"]).name == "012.jpg"
    assert 0 < found["nearest"][0]["distance"] < found["nearest"][1]["distance"]
    with pytest.raises(RequestError, match="has no such features"):
        nearest(backbone="resnet18")
    new.write_bytes(b"no picture")
    with pytest.raises(PictureError, match=r"new\.png"):
        nearest(weights=weights)
    new.unlink()
    with pytest.raises(RequestError, match="there is no picture"):
        nearest(weights=weights)


def test_a_dataset_without_labels_is_compared_all_the_same(
    analysed: Analysed, tmp_path: Path
) -> None:
    ingest(analysed.pictures, tmp_path / "dataset", labels="none")
    config = SimilarConfig(**{**vars(analysed.config), "dataset": str(tmp_path / "dataset")})
    summary = record_similar(config, run_similar(config, InlineExecutor()))
    assert summary["labels"] is None
    assert summary["duplicates"]["groups"] == 8
    assert any("labels are not judged" in note for note in summary["notes"])


def test_forget_leaves_no_page_and_no_table_of_a_run(analysed: Analysed, tmp_path: Path) -> None:
    dataset = tmp_path / "dataset"
    shutil.copytree(analysed.dataset, dataset)
    config = ForgetConfig(path=str(dataset), uris=(str(analysed.pictures / "moss" / "000.jpg"),))
    summary = run_forget(config, InlineExecutor())
    assert {path.name for path in (dataset / "runs").rglob("*") if path.is_file()} == {
        "config.json"
    }
    assert any("runs/ were deleted" in note for note in summary.notes)


def test_wrong_requests_say_what_to_change(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give one, not several"):
        SimilarConfig(dataset="d", backbone="a,b")
    with pytest.raises(RequestError, match="--neighbours 0"):
        SimilarConfig(dataset="d", neighbours=0)
    with pytest.raises(RequestError, match="holds no dataset"):
        run_similar(SimilarConfig(dataset=str(tmp_path)), InlineExecutor())
