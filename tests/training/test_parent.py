"""Trainings that begin with a published model: its body, its normalisation, rows of its head."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from afinar.config.ingest import IngestConfig
from afinar.errors import RequestError
from afinar.ingestion.driver import run_ingest
from afinar.models.networks.backbones import build_backbone
from afinar.models.networks.heads import class_rows, set_class_rows
from afinar.models.networks.network import Network, build_network
from afinar.models.registry.aliases import promote
from afinar.models.registry.bundle import load_network
from afinar.models.registry.versions import StoredModel, find_model, publish_model
from afinar.training import parent as module
from afinar.training.distributed import Group
from afinar.training.head_start import HeadSolver
from afinar.training.linear_probe import Choice, Features, LinearHead
from afinar.training.parent import load_parent, rows_of_parent
from afinar.training.preparation import initial_network
from afinar.training.publish import TrainResult, publish
from afinar.training.task import plan_training
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, make_archive
from tests.models.networks.helpers import architecture
from tests.training.runs import config, interrupt_after, run

OPTIONS: dict[str, Any] = {"regime": "full", "epochs": 1}


def published(models: Path, result: TrainResult) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(models / result.weights["path"])


def test_a_training_from_a_model_publishes_nothing_that_validates_worse(
    trained: Trained, tmp_path: Path
) -> None:
    """Its body is the model's, and its head the better of two: the model's or the solved one."""
    configuration = config(
        trained, tmp_path, weights=trained.champion, regime="frozen", precision="float32"
    )
    result = run(configuration)
    parent = find_model(trained.champion)
    (start,) = result.history
    before, after = parent.version.metrics["val"], start["val"]
    # Features are kept in float16, which has three digits.
    assert (-after["top1"], after["loss"]) <= (-before["top1"], before["loss"] * 1.001)
    assert start["head"] == "model" or after["loss"] < before["loss"]

    weights, begun = published(tmp_path, result), load_network(*parent).state_dict()
    assert weights.keys() == begun.keys()
    body = [name for name in begun if name.startswith("backbone.")]
    assert body
    assert all(torch.equal(weights[name], begun[name]) for name in body)

    name = f"{parent.store.root}@{parent.version.id}"
    version = publish(plan_training(configuration, "run"), result, 1.0)
    assert version.lineage["parent"] == version.lineage["weights"] == name


def test_further_epochs_begin_with_the_weights_of_the_best_one(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoch 0 is the model itself; an interrupted run does not compute it again."""
    configuration = config(
        trained,
        tmp_path,
        weights=f"{trained.models}@1",
        head_init="random",
        checkpoint_steps=2,
        **OPTIONS,
    )
    interrupt_after(3, configuration, monkeypatch)

    def refuse(*_: Any) -> Any:
        raise AssertionError("the checkpoint has epoch 0")

    monkeypatch.setattr("afinar.training.worker.evaluate_head_of_model", refuse)
    result = run(configuration)
    start, end = result.history
    val = find_model(trained.champion).version.metrics["val"]
    assert (start["epoch"], start["head"], end["epoch"]) == (0, "model", 1)
    assert start["val"]["loss"] == pytest.approx(val["loss"], rel=1e-4)
    assert start["train"]["top1"] >= 0.9
    assert result.settings["head_rate"] == 1.0, "the head is not random"


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A dataset whose classes are those of the session's model, and one before them."""
    folder = tmp_path_factory.mktemp("three")
    pictures = make_archive(folder / "pictures", 14, ("moss", "rust", "slate"))
    (pictures / "slate").rename(pictures / "ash")
    dataset = str(folder / "dataset")
    run_ingest(IngestConfig(source=str(pictures), dataset=dataset, size=64), InlineExecutor())
    return Trained(pictures, dataset, "")


def test_rows_of_classes_that_stayed_are_kept_by_their_names(
    trained: Trained, three_classes: Trained, tmp_path: Path
) -> None:
    configuration = config(three_classes, tmp_path, weights=trained.champion, **OPTIONS)
    task = plan_training(configuration, "run")
    assert task.classes == ["ash", "moss", "rust"]
    network, kept = initial_network(task, Group())
    assert kept.tolist() == [False, True, True]
    begun = load_network(*find_model(trained.champion))
    rows, old = class_rows(network.classifier), class_rows(begun.classifier)
    assert torch.equal(rows.weight[1:], old.weight)
    assert torch.equal(rows.bias[1:], old.bias)
    assert rows.weight[0].any(), "random"


def test_a_new_class_gets_a_solved_row(
    trained: Trained, three_classes: Trained, tmp_path: Path
) -> None:
    result = run(config(three_classes, tmp_path, weights=trained.champion, regime="frozen"))
    (start,) = result.history
    assert start["head"] in {"model", "solved"}
    assert result.epochs == 0
    assert result.metrics["val"]["recall"]["ash"] > 0


def test_a_moved_alias_is_another_training(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = Path(shutil.copytree(trained.models, tmp_path / "models"))
    store, version = find_model(f"{models}@champion")
    second = publish_model(store, lambda number: replace(version, version=number, id=""))
    configuration = config(trained, tmp_path / "new", weights=f"{models}@champion", **OPTIONS)
    first = plan_training(configuration, "first")
    assert first.config.weights == f"{models}@{version.id}"
    assert plan_training(configuration, "again").run == "first"

    promote(store, second.version, "better")
    moved = plan_training(configuration, "second")
    assert (moved.run, moved.config.weights) == ("second", f"{models}@{second.id}")
    assert moved.fingerprint != first.fingerprint
    latest = replace(configuration, weights=f"{models}@latest")
    assert plan_training(latest, "third").run == "second", "the same model"

    monkeypatch.chdir(tmp_path)
    relative = replace(configuration, weights="models@1")
    assert plan_training(relative, "fourth").run == "first"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "squeezenet1_1"}, "backbone small_cnn, .* give --backbone small_cnn"),
        ({"cut": "9"}, "give --cut"),
        ({"weights": "{models}@7"}, "has no version '7': it has versions 1"),
        ({"weights": "{models}@best"}, "--weights .*write @champion, @previous, @latest"),
        ({"weights": "{models}-none@latest"}, "holds no model"),
        ({"weights": "{models}/{object}"}, "give --weights {models}@1"),
    ],
)
def test_weights_that_are_no_start_are_refused_in_planning(
    trained: Trained, tmp_path: Path, options: dict[str, str], message: str
) -> None:
    names = {
        "models": trained.models,
        "object": find_model(trained.champion).version.weights.path,
    }
    options = {name: value.format(**names) for name, value in options.items()}
    values: dict[str, Any] = {"weights": trained.champion, **OPTIONS, **options}
    with pytest.raises(RequestError, match=message.format(**names)):
        plan_training(config(trained, tmp_path / "models", **values), "run")
    assert not (tmp_path / "models").exists()


def test_a_copy_of_published_weights_elsewhere_is_a_file(trained: Trained, tmp_path: Path) -> None:
    path = find_model(trained.champion).version.weights.path
    copy = tmp_path / "elsewhere" / path
    copy.parent.mkdir(parents=True)
    shutil.copy(Path(trained.models, path), copy)
    task = plan_training(config(trained, tmp_path / "m", weights=str(copy), **OPTIONS), "run")
    assert task.weights_source == str(copy)


def test_normalisation_is_that_of_the_file_and_then_of_the_model(
    trained: Trained, tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build_backbone("small_cnn", 64).state_dict(), path)
    options: dict[str, Any] = {"mean": "0.1, 0.2,0.3", "std": "1,1,0.5", "head": "mlp"}
    values = {**OPTIONS, "weights": str(path), **options}
    plain = plan_training(config(trained, tmp_path, **OPTIONS, weights=str(path)), "plain")
    configuration = config(trained, tmp_path, **values)
    task = plan_training(configuration, "run")
    assert (task.input_view.mean, task.input_view.std) == ((0.1, 0.2, 0.3), (1.0, 1.0, 0.5))
    assert plain.input_view != task.input_view
    assert plain.fingerprint != task.fingerprint

    version = publish(task, run(configuration), 1.0)
    assert version.input_view == task.input_view
    child = config(trained, tmp_path, **{**OPTIONS, "weights": f"{tmp_path}@1"})
    assert plan_training(child, "child").input_view == task.input_view


@pytest.mark.parametrize(
    ("old", "new", "classes", "expected"),
    [
        ({}, {}, ["rust", "moss"], [1, 0]),
        ({}, {"classes": 3}, ["ash", "moss", "rust"], [-1, 0, 1]),
        ({}, {"head": "mlp"}, ["moss", "rust"], [-1, -1]),
        ({"head": "mlp"}, {"head": "mlp"}, ["moss", "rust"], [0, 1]),
        ({"head": "mlp"}, {"head": "mlp", "hidden": 8}, ["moss", "rust"], [-1, -1]),
        ({}, {"pool": "flatten"}, ["moss", "rust"], [-1, -1]),
        ({}, {"input_size": 96}, ["moss", "rust"], [0, 1]),
        ({"pool": "flatten"}, {"pool": "flatten", "input_size": 96}, ["moss", "rust"], [-1, -1]),
        ({"output": "sigmoid"}, {}, ["rust", "moss"], [1, 0]),
        ({}, {"output": "sigmoid"}, ["moss", "slate"], [-1, -1]),
    ],
)
def test_rows_are_kept_where_the_heads_have_the_same_inputs(
    trained: Trained,
    old: dict[str, Any],
    new: dict[str, Any],
    classes: list[str],
    expected: list[int],
) -> None:
    store, version = find_model(trained.champion)
    parent = StoredModel(store, replace(version, architecture=architecture(**old)))
    assert rows_of_parent(parent, architecture(**new), classes).tolist() == expected


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize(("old", "new"), [("sigmoid", "softmax"), ("softmax", "sigmoid")])
def test_a_head_keeps_its_probabilities_when_its_output_or_its_order_changes(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, head: str, old: str, new: str
) -> None:
    begun, network = (
        build_network(architecture(head=head, output=output)).network.eval()
        for output in (old, new)
    )

    def load(*_: Any) -> Network:
        return begun

    monkeypatch.setattr(module, "load_network", load)
    load_parent(find_model(trained.champion), network, np.array([1, 0]))
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected, found = begun(images).softmax(1), network(images).softmax(1)
    torch.testing.assert_close(found.flip(1), expected)


def head(rows: list[list[float]]) -> LinearHead:
    weight = torch.tensor(rows, dtype=torch.float64)
    return LinearHead(weight, torch.zeros(len(rows), dtype=torch.float64), (Choice(1.0),))


@pytest.mark.parametrize(
    ("select_by", "rows", "kept", "expected"),
    [
        ("top1", [[9, 0, 0], [0, 9, 0], [0, 0, 9]], [True] * 3, "model"),
        ("top1", [[3, 0, 0], [0, 3, 0], [0, 0, 3]], [True] * 3, "model"),  # a tie
        ("top1", [[0, 9, 0], [9, 0, 0], [0, 0, 9]], [True] * 3, "solved"),
        ("top1", [[9, 0, 0], [0, 9, 0], [0, 0, 9]], [False] * 3, "solved"),
        ("top1", [[9, 0, 0], [0, 9, 0], [7, 7, 7]], [True, True, False], "model"),
        ("top1", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [True] * 3, "solved"),
        ("loss", [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [True] * 3, "solved"),
        ("macro-f1", [[9, 0, 0], [0, 9, 0], [0, 0, 9]], [True] * 3, "model"),
    ],
)
def test_the_head_of_the_model_stays_if_it_validates_no_worse(
    select_by: Any, rows: list[list[float]], kept: list[bool], expected: str
) -> None:
    """Each class has one feature. New classes have the solved row in both heads."""
    classifier = nn.Linear(3, 3)
    set_class_rows(classifier, torch.tensor(rows), torch.zeros(3))
    unused: Any = None
    network: Any = SimpleNamespace(classifier=classifier)
    evaluator: Any = SimpleNamespace(classes=["a", "b", "c"])
    solver = HeadSolver(
        network=network, module=unused, inputs=unused, samples=unused, objective=unused,
        evaluator=evaluator, group=Group(), count=0, seed=0, threads=1, precision=torch.float32,
        kept=np.array(kept), is_last=True, select_by=select_by,
    )  # fmt: skip
    solved = head([[3, 0, 0], [0, 3, 0], [0, 0, 3]])
    validation = Features(torch.eye(3), torch.arange(3))
    best = solver._best_head(solved, validation)
    assert best is solved if expected == "solved" else best is not solved
    for number, is_kept in enumerate(kept):
        row = rows[number] if is_kept and expected == "model" else solved.weight[number].tolist()
        assert best.weight[number].tolist() == row
