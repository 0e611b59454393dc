"""The job: resumed, with rejects, and the pages of its methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from afinar.cli import explain as cli
from afinar.cli.main import main
from afinar.config.explain import (
    ExplainAdversarialConfig,
    ExplainFeaturesConfig,
    ExplainIdealConfig,
    ExplainSaliencyConfig,
)
from afinar.config.features import FeaturesConfig
from afinar.errors import RequestError, ShortfallError
from afinar.execution.executor import RayExecutor
from afinar.explain.driver import (
    AdversarialOutcome,
    RobustnessOutcome,
    explain_adversarial,
    explain_features,
    explain_ideal,
    explain_saliency,
)
from afinar.explain.network import ExplainedNetwork
from afinar.features.driver import run_features
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import find_model
from afinar.report.explain import record_explanation
from afinar.report.explain_attacks import robust_accuracies
from afinar.storage.open import open_store
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, jpeg
from tests.executors import InterruptedExecutor
from tests.report.html import Reader


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, name in enumerate(("one.jpg", "<script>two.jpg")):
        (folder / name).write_bytes(jpeg(number, tint=(60, 140, 60)))
    return folder


def saliency(
    trained: Trained, out: Path, *inputs: Path | str, **options: Any
) -> ExplainSaliencyConfig:
    options.setdefault("method", "gradcam")
    return ExplainSaliencyConfig(
        pictures=tuple(map(str, inputs)), model=trained.champion, out=str(out), **options
    )


def test_a_rerun_computes_only_what_is_missing(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    config = saliency(trained, tmp_path / "out", pictures)
    with pytest.raises(KeyboardInterrupt):
        explain_saliency(config, InterruptedExecutor())
    outcome = explain_saliency(config, InlineExecutor())
    assert (len(outcome.results), outcome.computed) == (2, 1)
    assert explain_saliency(config, InterruptedExecutor(0)).computed == 0
    (pictures / "three.jpg").write_bytes(jpeg(9))
    assert explain_saliency(config, InlineExecutor()).computed == 1
    other = saliency(trained, tmp_path / "out", pictures, target="rust")
    assert explain_saliency(other, InlineExecutor()).computed == 3


def test_results_on_ray_are_those_without(
    trained: Trained, pictures: Path, tmp_path: Path, local_ray: None
) -> None:
    ours = explain_saliency(saliency(trained, tmp_path / "a", pictures), InlineExecutor())
    on_ray = explain_saliency(saliency(trained, tmp_path / "b", pictures), RayExecutor(None))
    assert [stored.result.predicted for stored in ours.results] == [
        stored.result.predicted for stored in on_ray.results
    ]
    for first, second in zip(ours.results, on_ray.results, strict=True):
        assert first.unit == second.unit
        assert first.result.confidence == pytest.approx(second.result.confidence, abs=1e-5)


def test_a_picture_that_cannot_be_used_is_a_row_with_a_reason(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "broken.jpg").write_bytes(b"not a picture")
    config = saliency(trained, tmp_path / "out", pictures)
    outcome = explain_saliency(config, InlineExecutor())
    assert len(outcome.results) == 2
    assert [reject.reason for reject in outcome.rejects] == ["unidentified"]
    summary = record_explanation("saliency", config, outcome)
    assert summary["rejected"] == 1
    page = Path(summary["report"]).read_text()
    assert "unidentified" in page
    with pytest.raises(ShortfallError, match="none of the 1 pictures"):
        only = saliency(trained, tmp_path / "other", pictures / "broken.jpg")
        explain_saliency(only, InlineExecutor())


def test_page_json_and_pictures(trained: Trained, pictures: Path, tmp_path: Path) -> None:
    config = saliency(trained, tmp_path / "out", pictures, method="gradcam,integrated,occlusion")
    outcome = explain_saliency(config, InlineExecutor())
    summary = record_explanation("saliency", config, outcome)
    page = Path(summary["report"]).read_text()
    assert "<script>two" not in page
    assert "&lt;script&gt;two.jpg" in page
    text = Reader(page).text
    for words in ("Grad-CAM", "completeness error", "random fifth", "afinar explain saliency"):
        assert words in text
    record = json.loads(Path(summary["results"]).read_text())
    store = open_store(str(tmp_path / "out"))
    for result in record["results"]:
        assert set(result["pictures"]) == {
            "picture.png",
            "gradcam.png",
            "integrated.png",
            "occlusion.png",
        }
        assert all(store.stat(path).size for path in result["pictures"].values())
    assert "explain" in (tmp_path / "out" / "index.html").read_text()


def test_mistakes_and_classes_of_a_dataset(trained: Trained, tmp_path: Path) -> None:
    any_moss = saliency(
        trained, tmp_path / "out", trained.dataset, pick="any", class_="moss", sample=3
    )
    outcome = explain_saliency(any_moss, InlineExecutor())
    assert {stored.result.label for stored in outcome.results} == {"moss"}
    assert len(outcome.results) == 3
    mistakes = explain_saliency(
        saliency(trained, tmp_path / "out", trained.dataset), InlineExecutor()
    )
    assert all(stored.result.label != stored.result.predicted for stored in mistakes.results)
    assert mistakes.listed == len(mistakes.results)
    record_explanation("saliency", any_moss, mistakes)  # a page without pictures is a page
    with pytest.raises(RequestError, match="no class .slate."):
        explain_saliency(
            saliency(trained, tmp_path / "out", trained.dataset, class_="slate"), InlineExecutor()
        )


def test_ideal_pictures_beside_typical_ones(trained: Trained, tmp_path: Path) -> None:
    config = ExplainIdealConfig(
        class_="moss,rust",
        model=trained.champion,
        out=str(tmp_path / "out"),
        steps=6,
        seeds=2,
        dataset=trained.dataset,
    )
    outcome = explain_ideal(config, InlineExecutor())
    assert len(outcome.results) == 2 * 2 * 2
    assert set(outcome.typical) == {"moss", "rust"}
    assert all("moss" in uri for uri in outcome.typical["moss"].result.uris)
    page = Path(record_explanation("ideal", config, outcome)["report"]).read_text()
    assert "data:image/webp" in page
    assert "--class moss,rust" in page
    assert explain_ideal(config, InterruptedExecutor(0)).computed == 0


def test_features_with_the_pictures_that_activate_a_channel_most(
    trained: Trained, pictures: Path, tmp_path: Path, network: ExplainedNetwork
) -> None:
    node = network.find_node("3")
    out = str(tmp_path / "out")
    config = ExplainFeaturesConfig(
        pictures=(str(pictures),), model=trained.champion, out=out, node="3", channels=4,
        dataset=trained.dataset,
    )  # fmt: skip
    without = explain_features(config, InlineExecutor())
    assert not without.strongest
    assert "afinar features" in without.notes[0]

    from safetensors.torch import save_file

    weights = tmp_path / "backbone.safetensors"
    backbone = load_network(*find_model(trained.champion)).backbone
    state = {name: tensor.contiguous() for name, tensor in backbone.state_dict().items()}
    save_file(state, str(weights))
    run_features(
        FeaturesConfig(
            dataset=trained.dataset, backbone="small_cnn", weights=str(weights), cut=node,
            input_size=64,
        ),
        InlineExecutor(),
    )  # fmt: skip
    outcome = explain_features(config, InlineExecutor())
    assert outcome.computed == 0
    channels = [entry.channel for entry in outcome.results[0].result.nodes[0].channels]
    assert outcome.strongest[0].channel == channels[0]
    values = outcome.strongest[0].values
    assert values == sorted(values, reverse=True)
    record_explanation("features", config, outcome)
    with pytest.raises(RequestError, match="no positions"):
        explain_features(
            ExplainFeaturesConfig(
                pictures=(str(pictures),), model=trained.champion, out=out, node="15"
            ),
            InlineExecutor(),
        )


def test_adversarial_pictures_and_accuracy(
    trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    config = ExplainAdversarialConfig(
        pictures=(str(pictures),), model=trained.champion, out=str(tmp_path / "out"),
        target="rust", epsilon=64, steps=10,
    )  # fmt: skip
    outcome = explain_adversarial(config, InlineExecutor())
    assert isinstance(outcome, AdversarialOutcome)
    for stored in outcome.results:
        assert stored.result.change <= 64
        assert stored.result.target == "rust"
    record_explanation("adversarial", config, outcome)

    curve = ExplainAdversarialConfig(
        pictures=(trained.dataset,), model=trained.champion, out=str(tmp_path / "out"), steps=3,
        restarts=1,
    )  # fmt: skip
    robustness = explain_adversarial(curve, InlineExecutor())
    assert isinstance(robustness, RobustnessOutcome)
    shares = [entry.accuracy.value for entry in robust_accuracies(robustness)]
    assert shares == sorted(shares, reverse=True)
    summary = record_explanation("adversarial", curve, robustness)
    assert "upper bound of robust accuracy" in Path(summary["report"]).read_text()
    assert "levels of 255" in cli.describe(summary)


def test_requests_that_cannot_be_served_say_why(
    trained: Trained, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--model", trained.champion]
    assert main(["explain", "dream"]) == 2
    assert main(["explain", "saliency", *out]) == 2
    assert main(["explain", "saliency", str(pictures / "none.jpg"), *out]) == 2
    assert main(["explain", "ideal", *out]) == 2
    assert main(["explain", "ideal", "--class", "slate", *out]) == 2
    assert main(["explain", "saliency", str(pictures), *out[2:], "--out", trained.dataset]) == 2
    assert "there is no picture" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--help"])
    assert ended.value.code == 0
    assert "saliency" in capsys.readouterr().out
