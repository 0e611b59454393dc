"""A model in Python: pictures of every kind, errors of single pictures, devices, the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import afinar
from afinar.api.model import Picture
from afinar.pictures.rejects import Reason
from tests.archives import BROKEN
from tests.conftest import TINTS, Trained, jpeg


@pytest.fixture(scope="module")
def model(trained: Trained) -> afinar.Model:
    return afinar.open_model(trained.models)


@pytest.fixture
def moss(tmp_path: Path) -> Path:
    path = tmp_path / "moss.jpg"
    path.write_bytes(jpeg(7, tint=TINTS["moss"]))
    return path


def test_models_alone_are_the_champion(model: afinar.Model, trained: Trained) -> None:
    assert model.version == afinar.open_models(trained.models).champion
    assert "on cpu" in repr(model)
    assert "test top-1" in model._repr_html_()


def test_one_picture_gives_one_prediction(model: afinar.Model, moss: Path) -> None:
    prediction = model.predict(str(moss))
    assert prediction.label == "moss"
    assert prediction.error is None
    assert prediction.score == prediction["moss"] > 0.5
    assert sum(prediction.values()) == pytest.approx(1, abs=1e-5)
    assert repr(prediction).startswith("Prediction(moss ")


def test_every_kind_of_picture_gives_the_same_prediction(model: afinar.Model, moss: Path) -> None:
    expected = model.predict(moss)
    opened = Image.open(moss)
    pixels = np.asarray(opened)
    kinds: list[Picture] = [str(moss), opened, pixels, opened.convert("RGBA")]
    for prediction in model.predict(kinds):
        assert dict(prediction) == pytest.approx(dict(expected), abs=0.02)
    (of_a_stack,) = model.predict(pixels[None])
    assert of_a_stack == model.predict(pixels)
    assert model.predict(picture for picture in [moss]) == [expected]
    assert model.predict(np.zeros((40, 30), np.uint8)).label in {"moss", "rust"}


def test_opened_picture_is_turned_upright(model: afinar.Model, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = Image.fromarray(np.arange(60 * 80 * 3, dtype=np.uint8).reshape(60, 80, 3))
    sideways.save(tmp_path / "sideways.png", exif=exif)
    of_file = model.predict(tmp_path / "sideways.png")
    of_image = model.predict(Image.open(tmp_path / "sideways.png"))
    assert of_image == of_file


def test_a_bad_picture_is_an_error_of_its_own(
    model: afinar.Model, moss: Path, tmp_path: Path
) -> None:
    note = tmp_path / "note.jpg"
    note.write_bytes(BROKEN["unidentified"])
    good, bad, missing = model.predict([moss, note, tmp_path / "missing.jpg"])
    assert good.label == "moss"
    assert bad.label is None
    assert bad == {}
    assert bad.error is not None
    assert bad.error.reason is Reason.UNIDENTIFIED
    assert "error" in repr(bad)
    assert missing.error is not None
    assert missing.error.reason is Reason.MISSING
    assert model.predict([note])[0].score == 0
    assert model.predict([]) == []
    with pytest.raises(afinar.PictureError, match="unidentified"):
        model.predict(note)


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8, 4), np.uint8)])
def test_array_that_is_no_picture_is_refused(model: afinar.Model, array: Any) -> None:
    with pytest.raises(afinar.RequestError, match=r"give uint8 \[height, width, 3\]"):
        model.predict(array)


def test_device_that_does_not_exist_is_refused(trained: Trained) -> None:
    with pytest.raises(afinar.RequestError, match="no device 'cuda:99'"):
        afinar.open_model(trained.models, device="cuda:99")
    with pytest.raises(afinar.RequestError, match="no device 'gpu'"):
        afinar.open_model(trained.models, device="gpu")
    assert afinar.open_model(trained.models, device="auto").device.type in {"cpu", "cuda"}
    assert afinar.open_model(trained.models).to("cpu").device.type == "cpu"


def test_network_alone_gives_the_same_probabilities(model: afinar.Model, trained: Trained) -> None:
    images = afinar.open_dataset(trained.dataset).read([0, 1, 2])
    with torch.inference_mode():
        logits = model.module(model.preprocess(images))
    scores = (logits / model.version.temperature).softmax(dim=1).numpy()
    assert scores == pytest.approx(model(images), abs=1e-6)
    view = model.version.input_view
    by_hand = (images[0, 0, 0] / 255 - np.array(view.mean)) / np.array(view.std)
    assert model.preprocess(images)[0, :, 0, 0].numpy() == pytest.approx(by_hand, abs=1e-5)
