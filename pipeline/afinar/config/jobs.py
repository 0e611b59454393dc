"""One frozen configuration per job. A run stores the whole of it; the command line is made from it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

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
    """TOML file whose keys are these flags, or the name of a recipe that ships with afinar (`vgg16-fc2`); a flag
    given here overrides it."""
    address: str | None = None
    """Ray cluster to run on; default: RAY_ADDRESS, else a local Ray is started."""
    workers: int = 0
    """Worker processes; 0 takes one per core of the cluster (label: one per GPU where there is one; train: one per
    GPU, or two where there is none)."""
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
    """Pictures per forward pass; 0: found by trial from 4,000 pictures on, below 8 on a CPU, 64 on a GPU."""
    precision: Precision = "auto"
    """`float32`, `bfloat16`, or `auto`: bfloat16 where the hardware multiplies it (Tensor Cores, AMX, AVX-512) and the
    model's golden samples get the same answers."""
    forecast: str = ""
    """FILE that `afinar plan label --json` printed of this labelling: the summary then says how wrong it was."""
    retry_rejects: bool = False
    """Try again every picture that an earlier run rejected, not only those that failed in transit."""
    max_reject_rate: float = 1.0
    """Share of rejected pictures above which the exit code is 1."""
    unit_timeout_s: float = 3600.0
    """Seconds at one unit of 512 pictures after which a worker is taken to be stuck and replaced, and at a smaller one
    in proportion, a minute at least; sooner where other units have shown how long one takes."""


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


def as_dict(config: JobConfig) -> dict[str, Any]:
    """JSON form of a configuration, all fields."""
    return dataclasses.asdict(config)


def fingerprint(value: Any) -> str:
    """Hex digest of anything JSON can hold; TypeError for anything it cannot."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
