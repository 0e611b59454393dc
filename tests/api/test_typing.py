"""The interface as a type checker and a completion see it, from outside of the checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import afinar
from tests.test_imports import imported_by

SCRIPT = """
from pathlib import Path

import afinar
from torch.utils.data import DataLoader

try:
    ingested = afinar.ingest("pictures", "dataset", size=224, split="0.7,0.15,0.15")
except afinar.RequestError as error:
    print(error)
dataset = afinar.open_dataset(Path("dataset"))
images, labels = dataset.numpy("train")
reveal_type(images)
print(len(dataset), [sample.label for sample in dataset], dataset[0].image.shape)
loader = DataLoader(dataset.torch("train"), batch_size=8)
reveal_type(afinar.train("dataset", "models", backbone="resnet18", epochs=5))
model = afinar.open_model("models", device="auto")
reveal_type(model.predict("a.jpg"))
reveal_type(model.predict([Path("a.jpg"), images[0]]))
reveal_type(afinar.label("archive", "predictions", model="models").predictions)
afinar.open_models("models").promote(2)
"""

MISTAKES = """
import afinar

afinar.ingest("pictures", "dataset", sise=224)
afinar.train("dataset", "models", epochs="many")
afinar.label("archive", "predictions")
afinar.open_dataset("dataset").numpy("valid")
"""


def test_scripts_of_a_user_are_type_checked(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text("")
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "mistakes.py").write_text(MISTAKES)
    # In a folder without our configuration; one run, since it checks torch too.
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", ".mypy"]
    done = subprocess.run(
        [*command, "script.py", "mistakes.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    revealed = [line.split('"')[1] for line in lines if "Revealed type" in line]
    assert revealed[0].startswith("numpy.ndarray")
    assert revealed[1:] == [
        "afinar.api.jobs.TrainResult",
        "afinar.api.model.Prediction",
        "list[afinar.api.model.Prediction]",
        "afinar.predictions.part_reader.Predictions",
    ]
    errors = [line.split(": error:")[0] for line in lines if ": error:" in line]
    assert errors == [f"mistakes.py:{line}" for line in (4, 5, 6, 7)], done.stdout


def test_public_names_are_pinned_lazy_and_documented() -> None:
    assert afinar.__all__ == [
        "AfinarError", "Dataset", "Explainer", "Model", "Models", "PictureError", "Prediction",
        "Predictions", "RequestError", "Sample", "ShortfallError", "__version__", "compare",
        "ingest", "label", "open_dataset", "open_explainer", "open_features",
        "open_model", "open_models",
        "open_predictions", "train",
    ]  # fmt: skip
    assert dir(afinar) == sorted(afinar.__all__)
    public = [name for name in afinar.__all__ if name != "__version__"]
    for name in public:
        thing = getattr(afinar, name)
        assert thing.__doc__, name
        members = [member for member in vars(thing) if not member.startswith("_")]
        for member in members if isinstance(thing, type) else ():
            assert getattr(thing, member).__doc__, f"{name}.{member}"
    assert imported_by("import afinar").isdisjoint({"torch", "ray", "pyarrow", "numpy"})
    assert "torch" not in imported_by("import afinar; afinar.open_dataset; afinar.label")


def test_functions_stay_functions_whatever_is_imported() -> None:
    import afinar.cli.main
    import afinar.config.ingest
    import afinar.ingestion.driver
    import afinar.labelling.driver

    assert callable(afinar.ingest)
    assert callable(afinar.train)
    assert callable(afinar.label)
