"""Erasing pictures from a prediction folder: no row, export, page or old version names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from afinar import open_predictions
from afinar.cli.main import main
from afinar.config.forget import ForgetConfig
from afinar.errors import RequestError, ShortfallError
from afinar.labelling import forget as forget_module
from afinar.labelling.forget import PredictionForgetSummary, forget_predictions
from afinar.predictions.gc import verify
from afinar.predictions.manifest import FORGET_PLAN, get_parts, read_manifest
from afinar.predictions.review_queue import FORM
from afinar.report.review import review_page
from afinar.storage.arrow import from_parquet
from afinar.storage.objects import sha256
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.units.cut import PLAN
from afinar.units.plans import store_plan
from tests.archives import label, picture
from tests.conftest import Trained
from tests.executors import InterruptedExecutor
from tests.predictions.folders import uncertain_archive


def forget(out: str, *uris: str) -> PredictionForgetSummary:
    return forget_predictions(ForgetConfig(path=out, uris=uris))


def content_of(folder: Path, name: str) -> str:
    return sha256((folder / "scans" / name).read_bytes())


def files_with(store: Store, name: str, content: str) -> list[str]:
    """Return the files with this name of a picture, or a row with this content hash."""
    found = []
    for info in store.walk():
        data = store.get(info.name)
        text = data.decode(errors="replace")
        if info.name.endswith(".parquet"):
            text = repr(from_parquet(data).to_pylist())
        is_manifest = info.name.startswith("manifests/")
        if name in text or (content in text and not is_manifest):
            found.append(info.name)
    return found


def make_predictions(folder: Path, trained: Trained) -> str:
    """Label 61 pictures, two with the same content, with all exports; return the predictions."""
    scans = uncertain_archive(folder / "scans")
    shutil.copy(scans / "007.jpg", scans / "copy.jpg")
    out = str(folder / "out")
    for options in ({"features": True, "single": True}, {"abstain_below": 1.0, "scores": True}):
        label(scans, out, trained, render_page=review_page, **options)
    return out


def test_erased_picture_is_in_no_file_and_does_not_come_back(
    trained: Trained, tmp_path: Path
) -> None:
    out = make_predictions(tmp_path, trained)
    store, content = open_store(out), content_of(tmp_path, "007.jpg")
    store.put_if_absent(
        "runs/one/report.html", b"<li>" + str(tmp_path).encode() + b"/scans/007.jpg"
    )
    store.put_if_absent("runs/two/report.html", b"<li>another")
    assert len(files_with(store, "007.jpg", content)) >= 5

    summary = forget(out, "007.jpg")
    assert (summary.pictures, summary.contents) == (4, 1), "the picture and its copy, twice"
    assert summary.versions_withdrawn == [1, 2]
    assert files_with(store, "007.jpg", content) == []
    assert not files_with(store, "copy.jpg", content)
    assert store.get("runs/two/report.html")
    manifest = read_manifest(store)
    assert manifest.forgotten == [content]
    assert verify(store, manifest).damaged == []
    for partition in manifest.partitions.values():
        assert (partition.rows, partition.rejects) == (59, 1)
        account = partition.accounts[partition.source]["standing"]
        assert sum(account["labels"].values()) == 59
        assert sum(part.ref.rows for part in get_parts(store, partition)) == 60

    again = label(tmp_path / "scans", out, trained, features=True, single=True)
    assert (again.read, again.rejects_by_reason) == (2, {"empty": 1, "forgotten": 2})
    assert open_predictions(out).table.num_rows == 59
    (single,) = (info.name for info in store.walk("single") if info.name.endswith(".parquet"))
    assert from_parquet(store.get(single)).num_rows == 59
    places = " ".join(summary.notes)
    for place in ("source", "datasets", "models", "content hashes"):
        assert place in places


def test_edited_form_loses_only_the_lines_of_the_erased_picture(
    trained: Trained, tmp_path: Path
) -> None:
    out = make_predictions(tmp_path, trained)
    store = open_store(out)
    (form,) = (Path(out) / info.name for info in store.walk("review") if FORM in info.name)
    lines = form.read_text().splitlines()
    form.write_text("\n".join(line.replace("moss", "my moss") for line in lines) + "\n")
    forget(out, str(tmp_path / "scans" / "009.jpg"))
    left = form.read_text().splitlines()
    assert len(left) == len(lines) - 1
    assert "my moss" in form.read_text()
    assert "009.jpg" not in form.read_text()
    assert [info.name.rsplit("/")[-1] for info in store.walk("review")] == [FORM]


def test_command_reports_what_it_erased(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = make_predictions(tmp_path, trained)
    assert main(["forget", out, "011.jpg"]) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "erased 2 rows of 1 distinct contents" in printed
    assert "deleted versions: 1, 2;" in printed
    assert "afinar forget DATASET URI" in printed


def test_rejected_picture_is_erased_by_its_uri(trained: Trained, tmp_path: Path) -> None:
    out = make_predictions(tmp_path, trained)
    assert forget(out, "empty.jpg").contents == 0
    assert not files_with(open_store(out), "empty.jpg", sha256(b""))


def test_requests_that_cannot_be_carried_out(trained: Trained, tmp_path: Path) -> None:
    out = make_predictions(tmp_path, trained)
    store = open_store(out)
    with pytest.raises(RequestError, match=r"names no nobody\.jpg"):
        forget(out, "nobody.jpg")
    notes = forget(out, "nobody.jpg", "003.jpg").notes
    assert notes[0] == "nothing here names nobody.jpg"
    with pytest.raises(RequestError, match="holds no dataset and no predictions"):
        forget(str(tmp_path / "scans"), "003.jpg")

    (tmp_path / "scans" / "late.jpg").write_bytes(picture(99))
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path / "scans", out, trained, InterruptedExecutor(0), features=True)
    with pytest.raises(RequestError, match="a labelling into .* was interrupted"):
        forget(out, "004.jpg")
    assert not any(info.name == FORGET_PLAN for info in store.walk("plans"))


def test_labelling_does_not_run_beside_an_erasure(trained: Trained, tmp_path: Path) -> None:
    out = make_predictions(tmp_path, trained)
    (tmp_path / "scans" / "late.jpg").write_bytes(picture(99))
    store_plan(open_store(out), FORGET_PLAN, PLAN.empty_table())
    with pytest.raises(ShortfallError, match="being erased"):
        label(tmp_path / "scans", out, trained, features=True)


def test_erasure_that_was_killed_after_it_published_is_completed(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = make_predictions(tmp_path, trained)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(forget_module, "collect", killed)
        patch.setattr(forget_module, "delete_old_singles", killed)
        with pytest.raises(KeyboardInterrupt):
            forget(out, "007.jpg")
    store, content = open_store(out), content_of(tmp_path, "007.jpg")
    assert files_with(store, "007.jpg", content)
    with pytest.raises(RequestError, match="names no"):
        forget(out, "007.jpg")
    assert files_with(store, "007.jpg", content) == []
