"""One picture whose classes are printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from afinar import open_model
from afinar.errors import ForbiddenError, RequestError
from afinar.labelling.predict_one import label_one
from afinar.pictures.rejects import PictureError
from afinar.storage.open import open_store
from tests.archives import fail_reads
from tests.conftest import Trained, jpeg, run_afinar


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "a picture.jpg"
    path.write_bytes(jpeg(77, (90, 70), tint=(60, 140, 60)))
    return path


def test_picture_is_a_file_scores_are_those_of_the_model(
    picture: Path, trained: Trained, tmp_path: Path
) -> None:
    done = run_afinar(
        "label", picture.name, "-", "--model", trained.champion, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    (expected,) = open_model(trained.champion).predict([picture])
    assert answer["picture"] == str(picture)
    assert answer["model"].startswith(f"{trained.models}@1-")
    scores = {row["label"]: row["score"] for row in answer["predictions"]}
    assert scores == pytest.approx(expected, rel=1e-6)
    assert list(scores) == sorted(expected, key=expected.__getitem__, reverse=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [picture.name], "nothing is written"


WITHOUT_RAY = """import sys
sys.modules["ray"] = None
from afinar.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_ray_is_not_installed_a_table_of_the_best_classes_is_printed(
    picture: Path, trained: Trained
) -> None:
    words = ["label", str(picture), "-", "--model", trained.champion, "--top-k", "1"]
    command = [sys.executable, "-P", "-c", WITHOUT_RAY, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    *head, last = done.stdout.splitlines()
    assert re.fullmatch(r"moss +\d+\.\d\d%", last)
    assert not any("rust" in line for line in head)


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"see the next box", "unidentified")]
)
def test_picture_cannot_be_used_exit_code_is_1_with_the_reason(
    data: bytes, reason: str, trained: Trained, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    done = run_afinar("label", "bad.jpg", "-", "--model", trained.champion, "--json", cwd=tmp_path)
    assert done.returncode == 1
    refusal = json.loads(done.stdout)
    assert refusal["exit_code"] == 1
    assert refusal["error"].startswith(f"{reason}: {tmp_path / 'bad.jpg'}: ")


def test_picture_is_in_a_bucket_scores_are_those_of_the_file(
    picture: Path, trained: Trained, bucket: str
) -> None:
    open_store(bucket).put_if_absent("scans/one.jpg", picture.read_bytes())
    found = label_one(f"{bucket}/scans/one.jpg", trained.champion, 5)
    assert found["picture"] == f"{bucket}/scans/one.jpg"
    assert found["predictions"] == label_one(str(picture), trained.champion, 5)["predictions"]
    for uri, message in (
        (f"{bucket}/scans", "is a folder"),
        (bucket.rsplit("/", 1)[0], "is a folder"),
        (f"{bucket}/scans/two.jpg", "no picture"),
        ("s3://there-is-no-such-bucket/one.jpg", "no picture"),
    ):
        with pytest.raises(RequestError, match=message):
            label_one(uri, trained.champion, 5)


def test_picture_cannot_be_read_error_has_the_reason(
    picture: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ForbiddenError(f"{picture.name}: Permission denied")
    fail_reads(monkeypatch, picture, error)
    with pytest.raises(PictureError, match="forbidden: a picture.jpg: Permission denied"):
        label_one(str(picture), trained.champion, 5)
