"""Summary of a training as text."""

from __future__ import annotations

from typing import Any

from afinar.cli.train import describe


def summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the summary of a training on two classes."""
    metrics: dict[str, Any] = {
        "top1": 0.9,
        "loss": 0.3,
        "macro_f1": 0.88,
        "recall": {"moss": 0.9, "rust": 0.9},
        "largest_class": "moss",
        "largest_share": 0.6,
    }
    return {
        "model": "models/@1-0a1b2c3d",
        "promoted": True,
        "champion": 1,
        "why": "no champion before it",
        "architecture": {"backbone": "resnet18", "cut": "x", "head": "linear", "input_size": 224},
        "weights": "imagenet",
        "params_total": 10,
        "params_trainable": 2,
        "regime": "full",
        "settings": {
            "batch_size": 32,
            "epochs": 3,
            "learning_rate": 1e-3,
            "head_rate": 1.0,
            "layer_decay": 1.0,
        },
        "epochs": 3,
        "metrics": {"test": {**metrics, "binary": {"positive": "rust", "points": points}}},
        "seconds": 1.0,
        "stall_fraction": 0.0,
        "report": "report.html",
        "limit": "",
    }


def test_summary_says_who_is_champion_and_why() -> None:
    values = summary([])
    assert "champion    version 1, this one: no champion before it" in describe(values)
    stays = {"promoted": False, "champion": 3, "why": "version 4 is not better"}
    assert "version 3 stays: version 4 is not better" in describe(values | stays)
    nobody = {"promoted": False, "champion": None, "why": "it guesses"}
    assert "none: it guesses" in describe(values | nobody)
    settings = values["settings"] | {
        "workers": 2, "device": "CPU", "precision": "float32", "augment": "flip", "is_cut": True
    }  # fmt: skip
    text = " ".join(describe(values | {"settings": settings}).split())
    assert "augmentation flip, float32, 2 workers on CPU, cut by --time-limit" in text


def test_operating_points_of_two_classes_have_a_line_each() -> None:
    text = describe(
        summary(
            [
                {
                    "measure": "precision",
                    "target": 0.95,
                    "threshold": 0.625,
                    "test": {"precision": 0.9375, "recall": 0.5},
                },
                {
                    "measure": "precision",
                    "target": 0.99,
                    "threshold": 0.75,
                    "test": {"precision": None, "recall": 0.0},
                },
                {"measure": "recall", "target": 0.9, "threshold": None, "test": None},
            ]
        )
    )
    for phrase in (
        "rust from a probability of 0.625: precision 93.8%, recall 50.0% on test",
        "rust from a probability of 0.75: precision none, recall 0.0% on test",
        "not reached on validation",
    ):
        assert phrase in text
