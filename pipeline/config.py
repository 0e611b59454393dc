"""One frozen configuration per job, and the strict reading of recipes into it.

A run stores the whole of its configuration. Requests are checked here as far as the request alone shows,
before torch or ray is imported. Command-line parsing lives in `jobs`; this module needs neither.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pipeline.errors import RequestError

POSITIONAL = "positional"
"""Marks a field that the command line takes by position."""

NAMED_WEIGHTS = frozenset({"imagenet", "package", "torchvision", "none"})
"""What `--weights` takes besides a file or a URI."""

Fit = Literal["crop", "pad", "squash"]
StoreKind = Literal["pixels", "jpeg"]
Head = Literal["linear", "mlp"]
Pool = Literal["average", "flatten"]
Output = Literal["softmax", "sigmoid"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
Schedule = Literal["cosine", "linear", "constant"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """What every job takes."""

    recipe: str | None = None
    """TOML file whose keys are these flags; a flag given here overrides it."""
    address: str | None = None
    """Ray cluster to run on; default: RAY_ADDRESS, else a local Ray is started."""
    workers: int = 0
    """Worker processes; 0 takes one per core of the cluster (train: one per GPU, or two where there is none)."""
    json: bool = False
    """Print exactly one JSON object on stdout; everything else goes to stderr."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig(JobConfig):
    """Turn a folder or an s3:// prefix of pictures into an Arrow dataset."""

    source: Annotated[str, POSITIONAL]
    """Root of the pictures: a folder or s3://BUCKET/PREFIX."""
    dataset: Annotated[str, POSITIONAL]
    """Where the dataset is written or brought up to date: a folder or s3://BUCKET/PREFIX."""
    labels: str = "folder"
    """`folder`: the first folder below SOURCE is the label; `none`: pictures carry no label; or a CSV or Parquet FILE
    with the columns uri (whole, or relative to SOURCE) and label."""
    extensions: str = ".jpg,.jpeg,.png"
    """File name endings to take, comma-separated, or `all`."""
    split: str = "0.7,0.15,0.15"
    """Shares of train, validation and test; a picture's split is a function of its content (or group) and --seed. Or
    `folder`: the first folders below SOURCE are train, validation and test, of which the last two may be missing."""
    group: str = ""
    """CSV or Parquet FILE with the columns uri and group (a patient, a burst, a page): a group is never split."""
    seed: int = 0
    """Seed of the split."""
    size: int = 256
    """Side in pixels of the stored square."""
    fit: Fit = "crop"
    """How a picture becomes square: centre `crop`, `pad` with the background, or `squash`."""
    store: StoreKind = "pixels"
    """What shards hold: `pixels` (mapped, read without decoding) or `jpeg` (quality 95, a fifth of the size)."""
    max_reject_rate: float = 0.05
    """Share of rejected pictures above which the version is not published and the exit code is 1."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(JobConfig):
    """Train a classifier on an ingested dataset and publish it as the next model version."""

    dataset: Annotated[str, POSITIONAL] = ""
    """Dataset made by `afinar ingest`."""
    models: Annotated[str, POSITIONAL] = ""
    """Folder or s3:// prefix that holds this model's history."""
    describe: bool = False
    """Train nothing: print the backbone's nodes with their shapes, its stages, and its parameters."""

    backbone: str = "resnet18"
    """Any torchvision classification network, `efficientnet_lite0`, or `small_cnn`."""
    weights: str = "imagenet"
    """`imagenet` (first source available), `none`, `torchvision`, `package`, or a file or URI, `#sha256=…` optional."""
    cut: str = "auto"
    """Node where the backbone is cut (`--describe` lists them); `auto`: the input of its classifier."""
    pool: Pool = "average"
    """How activations at the cut become one row: their `average` over places, or all of them, `flatten`."""
    head: Head = "linear"
    """What is grafted at the cut: one `linear` layer, or an `mlp` of one hidden layer."""
    hidden: int = 256
    """Width of the mlp's hidden layer (ReLU)."""
    dropout: float = 0.2
    """Dropout behind the mlp's hidden layer."""
    output: Output = "softmax"
    """`softmax` over all classes (cross-entropy), or for two classes one `sigmoid` (binary cross-entropy)."""
    input_size: int = 0
    """Side in pixels that the network sees; 0: the network's own."""

    regime: str = "full"
    """`frozen` (head only), `last:N` (head and the last N stages), `full`, or `scratch` (all, from random weights)."""
    epochs: int = 10
    """Passes over the training split."""
    patience: int = 0
    """Stop after this many epochs without a better one by validation; 0: never early."""
    batch_size: int = 32
    """Samples per step over all workers together; each computes its share."""
    optimizer: Optimizer = "adamw"
    """`adamw`, `adam`, `sgd` (Nesterov momentum 0.9) or `rmsprop`."""
    learning_rate: float = 0.0
    """Peak rate; 0: what suits optimizer and regime."""
    schedule: Schedule = "cosine"
    """Of the rate after warm-up: `cosine` or `linear` to zero, or `constant`."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises from zero."""
    layer_decay: float = 1.0
    """Each stage's rate is this times the rate of the stage behind it; 1: all alike."""
    weight_decay: float = 1e-4
    """Decoupled for adamw, else added to the gradient; none on biases and normalisation."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: ClassWeights = "none"
    """`balanced`: the loss of a class counts inversely to its share of the training split."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0: not clipped."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is evaluated and published; 0: none."""
    augment: str = "auto"
    """Comma-separated: flip, flip-vertical, rotate:DEGREES, shift:SHARE, zoom:SHARE, shear:DEGREES, brightness:SHARE,
    contrast:SHARE, saturation:SHARE; or `none`. `auto`: none for frozen (features are computed once), else flip."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where the hardware multiplies it (Tensor Cores, AMX)."""
    compile: bool = False
    """Compile the network with torch.compile: pays in long runs."""

    window_mb: int = 4096
    """Samples are shuffled within a window of shards of this size; remote shards are cached up to twice this."""
    checkpoint_steps: int = 0
    """Steps between checkpoints besides those at the end of every epoch; 0: only there."""
    keep_best: int = 1
    """Epochs, the best by validation, whose weights stay in the run's folder."""
    min_workers: int = 0
    """Train on with as few as this many workers when the cluster shrinks, with more when it grows; 0: all or none."""
    cores_per_worker: int = 0
    """Processor cores of each worker; 0: its share of its machine (one beside a GPU)."""
    max_failures: int = 3
    """Lost workers or machines after which the job gives up."""
    start_timeout_s: float = 600.0
    """Seconds to wait for the cluster to give the workers' resources."""
    audit: str = ""
    """Folder where each worker writes which samples made each of its steps: proof that each counted once."""
    seed: int = 0
    """Seed of weights, order, dropout and augmentation."""


@dataclass(frozen=True, kw_only=True)
class LabelConfig(JobConfig):
    """Label every picture of a folder, a list or a dataset with a published model, or print what one picture shows."""

    source: Annotated[str, POSITIONAL]
    """The pictures: a folder or s3://BUCKET/PREFIX; a list of them, a CSV or Parquet FILE with the column uri (whole,
    or relative to FILE's folder), of which every row is taken; or a dataset made by `afinar ingest`. With `-`, one
    picture."""
    predictions: Annotated[str, POSITIONAL]
    """Where predictions are written or continued: a folder or s3://BUCKET/PREFIX; `-`: print those of one picture."""
    model: str
    """MODELS@champion or MODELS@VERSION (a number, or a version's id)."""
    extensions: str = ".jpg,.jpeg,.png"
    """File name endings to take, comma-separated, or `all`."""
    top_k: int = 5
    """Best classes kept per picture."""
    scores: bool = False
    """Also keep the probabilities of all classes, in the column `scores`; their order is in the manifest."""
    features: bool = False
    """Also keep the network's activations at its cut, in the column `features`."""
    abstain_below: float = 0.0
    """Answers below this probability are marked `abstained` and queued in review/ for people; 0: none are."""
    single: bool = False
    """Write all rows of this model as one Parquet file too, in single/."""
    batch_size: int = 0
    """Pictures per forward pass; 0: 8 on a CPU, 64 on a GPU."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where the hardware multiplies it (Tensor Cores, AMX) and the model's
    golden samples get the same answers."""
    forecast: str = ""
    """FILE that `afinar plan label --json` printed of this labelling: the summary then says how wrong it was."""
    retry_rejects: bool = False
    """Try again every picture that an earlier run rejected, not only those that failed in transit."""
    max_reject_rate: float = 1.0
    """Share of rejected pictures above which the exit code is 1."""
    unit_timeout_s: float = 3600.0
    """Seconds at one unit of 512 pictures after which a worker is taken to be stuck and replaced; sooner where other
    units have shown how long one takes."""


@dataclass(frozen=True, kw_only=True)
class StatusConfig(JobConfig):
    """Say what a dataset or a prediction folder holds; check its objects; remove what nothing needs."""

    path: Annotated[str, POSITIONAL]
    """A dataset or predictions: a folder or s3://BUCKET/PREFIX."""
    verify: bool = False
    """Read every object of every version (predictions: of the newest) and compare its hash."""
    gc: bool = False
    """Remove objects that no kept version names and no job under way needs."""
    drop_plans: bool = False
    """With --gc: give up plans that were interrupted and that nobody will resume."""
    keep: int = 0
    """With --gc: versions to keep, the newest; older ones are withdrawn. 0 keeps all."""


@dataclass(frozen=True, kw_only=True)
class ForgetConfig(JobConfig):
    """Erase pictures from a dataset: from its shards and from every version that held them."""

    dataset: Annotated[str, POSITIONAL]
    """Dataset made by `afinar ingest`."""
    uris: Annotated[tuple[str, ...], POSITIONAL]
    """Pictures to erase, as the index names them or relative to the source."""


C = TypeVar("C", bound=JobConfig)


def load_recipe(kind: type[C], path: str) -> dict[str, Any]:
    """Read a recipe: a flat TOML file whose keys are the job's fields, `-` or `_` between words.

    Returns the fields it sets, with their types checked. Raises RequestError naming the key and the
    nearest valid one.
    """
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"the recipe {path} is not TOML: {error}") from error
    values = {key.replace("-", "_"): value for key, value in table.items()}
    known = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(known))}"
            raise RequestError(f"the recipe {path} has an unknown key {key!r}{hint}")
    return _structured(kind, values, path)


def _structured(kind: type[C], values: dict[str, Any], path: str) -> dict[str, Any]:
    import typing

    import cattrs

    converter = cattrs.Converter(prefer_attrib_converters=True)
    for scalar in (int, float, str, bool):
        converter.register_structure_hook(scalar, _exactly)
    hints = typing.get_type_hints(kind)
    structured = {}
    for key, value in values.items():
        try:
            structured[key] = converter.structure(value, hints[key])
        except Exception as error:
            wanted = getattr(hints[key], "__name__", str(hints[key]).replace("typing.", ""))
            raise RequestError(f"the recipe {path}: {key} = {value!r} is not {wanted}") from error
    return structured


def _exactly(value: Any, kind: type) -> Any:
    """TOML has types: no string is taken for a number, and only an int may stand for a float."""
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{value!r} is not {kind.__name__}")
    return value


def as_dict(config: JobConfig) -> dict[str, Any]:
    """JSON form of a configuration, all fields."""
    return dataclasses.asdict(config)


def fingerprint(value: Any) -> str:
    """Hex digest of anything JSON can hold; TypeError for anything it cannot."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def parse_split(split: str) -> tuple[float, float, float] | None:
    """Three shares that sum to 1, from "0.7,0.15,0.15"; None for `folder`."""
    if split == "folder":
        return None
    try:
        train, validation, test = (float(part) for part in split.split(","))
    except ValueError:
        raise RequestError(f"--split {split!r}: give three shares, such as 0.7,0.15,0.15, or `folder`") from None
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
    _require(config.workers >= 0, f"--workers {config.workers}: give 0 for one per core, or a count")
    _require(8 <= config.size <= 4096, f"--size {config.size}: give a side between 8 and 4096 pixels")
    _require(0 <= config.max_reject_rate <= 1, f"--max-reject-rate {config.max_reject_rate}: give a share, 0 to 1")
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
        _require(0 <= value < 1, f"--{name.replace('_', '-')} {value}: give a share from 0 to below 1")
    _require(0 < config.layer_decay <= 1, f"--layer-decay {config.layer_decay}: give a factor above 0, at most 1")
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
        raise RequestError(f"--regime {regime!r}: choose frozen, last:N (such as last:2), full or scratch")
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
                ["flip", "flip-vertical", *(f"{one}:0-{most:g}" for one, most in _AUGMENT_LIMITS.items())]
            )
            raise RequestError(f"--augment {part!r}: choose from {known}, or `none`")
        found[key] = value
    return Augmentation(**found)


def check_label(config: LabelConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(config.workers >= 0, f"--workers {config.workers}: give 0 for one per core, or a count")
    _require(config.top_k >= 1, f"--top-k {config.top_k}: give at least 1")
    _require(config.batch_size >= 0, f"--batch-size {config.batch_size}: give a count, or 0")
    _require(config.unit_timeout_s > 0, f"--unit-timeout-s {config.unit_timeout_s:g}: give seconds above 0")
    _require(0 <= config.abstain_below <= 1, f"--abstain-below {config.abstain_below}: give a probability, 0 to 1")
    for name in ("scores", "features", "abstain_below", "single"):
        asked = config.predictions == "-" and getattr(config, name)
        _require(not asked, f"--{name.replace('_', '-')} needs a place for predictions: `-` only prints classes")
    _require("@" in config.model, f"--model {config.model!r}: write MODELS@champion or MODELS@VERSION")
    parse_extensions(config.extensions)


def check_status(config: StatusConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(config.keep >= 0, f"--keep {config.keep}: give a count of versions, or 0 for all")
    _require(config.gc or not config.keep, f"--keep {config.keep} withdraws versions: give --gc with it")
    _require(config.gc or not config.drop_plans, "--drop-plans removes unfinished plans: give --gc with it")


def check_forget(config: ForgetConfig) -> None:
    """Refuse what the request alone shows to be wrong."""
    _require(bool(config.uris), "name at least one picture to forget")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RequestError(otherwise)
