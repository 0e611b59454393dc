"""What a request alone shows to be wrong, found before torch or ray is imported; and its words made into values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from afinar.config.jobs import ForgetConfig, IngestConfig, LabelConfig, StatusConfig, TrainConfig
from afinar.errors import RequestError


def parse_split(split: str) -> tuple[float, float, float] | None:
    """Three shares that sum to 1, from "0.7,0.15,0.15"; None for `folder`."""
    if split == "folder":
        return None
    try:
        train, validation, test = (float(part) for part in split.split(","))
    except ValueError:
        raise RequestError(
            f"--split {split!r}: give three shares, such as 0.7,0.15,0.15, or `folder`"
        ) from None
    shares = (train, validation, test)
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise RequestError(f"--split {split!r}: shares must not be negative and must sum to 1")
    return shares


def parse_extensions(extensions: str) -> tuple[str, ...] | None:
    """Lower-case endings with their dot, or None for `all`."""
    if extensions.strip().lower() == "all":
        return None
    endings = tuple(part.strip().lower() for part in extensions.split(",") if part.strip())
    if not endings or not all(part.startswith(".") and len(part) > 1 for part in endings):
        raise RequestError(f"--extensions {extensions!r}: give endings such as .jpg,.png, or `all`")
    return endings


def check_ingest(config: IngestConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(
        config.workers >= 0, f"--workers {config.workers}: give 0 for one per core, or a count"
    )
    _require(
        8 <= config.size <= 4096, f"--size {config.size}: give a side between 8 and 4096 pixels"
    )
    _require(
        0 <= config.max_reject_rate <= 1,
        f"--max-reject-rate {config.max_reject_rate}: give a share, 0 to 1",
    )
    parse_split(config.split)
    parse_extensions(config.extensions)
    if config.labels not in {"folder", "none"}:
        _require_table("--labels", config.labels, "`folder`, `none`, or ")
    if config.group:
        _require_table("--group", config.group, "")


def _require_table(flag: str, value: str, otherwise: str) -> None:
    _require(
        value.lower().endswith((".csv", ".parquet")),
        f"{flag} {value!r}: give {otherwise}a table that ends in .csv or .parquet",
    )


def check_train(config: TrainConfig) -> None:
    """Refuse what the request alone shows to be wrong; names of backbones are the catalogue's to check."""
    at_least = {
        "workers": 0, "epochs": 1, "patience": 0, "batch_size": 2, "input_size": 0, "hidden": 1, "learning_rate": 0,
        "weight_decay": 0, "clip_norm": 0, "window_mb": 1, "checkpoint_steps": 0, "keep_best": 1,
        "min_workers": 0, "cores_per_worker": 0,         "max_failures": 0, "start_timeout_s": 1,
    }  # fmt: skip
    for name, least in at_least.items():
        value = getattr(config, name)
        _require(value >= least, f"--{name.replace('_', '-')} {value}: give at least {least}")
    for name in ("dropout", "warmup", "label_smoothing", "ema"):
        value = getattr(config, name)
        _require(
            0 <= value < 1, f"--{name.replace('_', '-')} {value}: give a share from 0 to below 1"
        )
    _require(
        0 < config.layer_decay <= 1,
        f"--layer-decay {config.layer_decay}: give a factor above 0, at most 1",
    )
    _require(
        not config.min_workers or config.min_workers <= config.workers,
        f"--min-workers {config.min_workers}: give --workers too, at least as many",
    )
    _require(
        not config.min_workers or config.checkpoint_steps > 0,
        "--min-workers: when the cluster changes, training goes on from its newest checkpoint: give --checkpoint-steps",
    )
    trainable_stages(config.regime)
    parse_augment(config.augment, config.regime)
    _require(
        config.describe or bool(config.dataset and config.models),
        "name the DATASET and where the MODELS go, or give --describe",
    )
    _require(
        not (config.regime not in {"scratch", "full"} and config.weights == "none"),
        f"--regime {config.regime} with --weights none would train a head on random features; give weights, "
        "or use --regime scratch",
    )


def trainable_stages(regime: str) -> int | None:
    """How many of the backbone's last stages a regime trains; None: all of them."""
    if regime in {"full", "scratch"}:
        return None
    if regime == "frozen":
        return 0
    kind, _, count = regime.partition(":")
    if kind != "last" or not count.isdecimal() or int(count) < 1:
        raise RequestError(
            f"--regime {regime!r}: choose frozen, last:N (such as last:2), full or scratch"
        )
    return int(count)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may happen to a training picture. Angles in degrees, each drawn from ± its value; the rest are shares.

    `shift` is of the picture's side; `zoom` z scales by 1 - z to 1 + z; `brightness`, `contrast` and `saturation`
    b multiply by 1 - b to 1 + b.
    """

    flip: bool = False
    flip_vertical: bool = False
    rotate: float = 0.0
    shift: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self != Augmentation()


_AUGMENT_LIMITS = {
    "rotate": 180.0, "shear": 60.0, "shift": 1.0, "zoom": 0.9, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0,
}  # fmt: skip


def parse_augment(spec: str, regime: str) -> Augmentation:
    """What `--augment` asks for. Raises RequestError naming the part that is off."""
    if spec == "auto":
        return Augmentation(flip=regime != "frozen")
    found: dict[str, Any] = {}
    for part in [] if spec == "none" else spec.split(","):
        name, _, amount = (piece.strip() for piece in part.partition(":"))
        key = name.replace("-", "_")
        if key in {"flip", "flip_vertical"} and not amount:
            found[key] = True
            continue
        limit = _AUGMENT_LIMITS.get(key)
        try:
            value = float(amount)
        except ValueError:
            value = math.nan
        if limit is None or not 0 < value <= limit:
            known = ", ".join(
                [
                    "flip",
                    "flip-vertical",
                    *(f"{one}:0-{most:g}" for one, most in _AUGMENT_LIMITS.items()),
                ]
            )
            raise RequestError(f"--augment {part!r}: choose from {known}, or `none`")
        found[key] = value
    return Augmentation(**found)


def check_label(config: LabelConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(
        config.workers >= 0, f"--workers {config.workers}: give 0 for one per core, or a count"
    )
    _require(config.top_k >= 1, f"--top-k {config.top_k}: give at least 1")
    _require(config.batch_size >= 0, f"--batch-size {config.batch_size}: give a count, or 0")
    _require(
        config.unit_timeout_s > 0,
        f"--unit-timeout-s {config.unit_timeout_s:g}: give seconds above 0",
    )
    _require(
        0 <= config.abstain_below <= 1,
        f"--abstain-below {config.abstain_below}: give a probability, 0 to 1",
    )
    for name in ("scores", "features", "abstain_below", "single"):
        asked = config.predictions == "-" and getattr(config, name)
        _require(
            not asked,
            f"--{name.replace('_', '-')} needs a place for predictions: `-` only prints classes",
        )
    _require(
        "@" in config.model, f"--model {config.model!r}: write MODELS@champion or MODELS@VERSION"
    )
    parse_extensions(config.extensions)


def check_status(config: StatusConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(config.keep >= 0, f"--keep {config.keep}: give a count of versions, or 0 for all")
    _require(
        config.gc or not config.keep, f"--keep {config.keep} withdraws versions: give --gc with it"
    )
    _require(
        config.gc or not config.drop_plans,
        "--drop-plans removes unfinished plans: give --gc with it",
    )


def check_forget(config: ForgetConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(bool(config.uris), "name at least one picture to forget")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RequestError(otherwise)
