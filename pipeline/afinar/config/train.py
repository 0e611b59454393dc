"""Configuration of `afinar train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

from afinar.config.augmentation import Augmentation, parse_augment
from afinar.config.base import POSITIONAL, ClusterJobConfig, require
from afinar.config.operating_points import OperatingTarget, parse_operating_points
from afinar.errors import RequestError

NAMED_WEIGHTS: Final = frozenset({"imagenet", "package", "torchvision", "none"})
"""Values of `--weights` that are neither a file nor a URI."""

Head = Literal["linear", "mlp"]
Pool = Literal["average", "flatten", "average+std", "token"]
Output = Literal["softmax", "sigmoid"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
Schedule = Literal["cosine", "linear", "constant"]
ClassWeights = Literal["none", "balanced", "sqrt", "capped"]
Sampling = Literal["natural", "balanced"]
HeadInit = Literal["solved", "random"]
SelectBy = Literal["top1", "loss", "macro-f1"]
Promote = Literal["auto", "never", "always"]
Preset = Literal["none", "quick", "best"]
TrainPrecision = Literal["auto", "float32", "bfloat16", "float16"]

_MODEL: Final = re.compile(r"(.+)@[\w-]+")  # a file has a name with a dot

Channels = tuple[float, float, float]

_MINIMA: Final = {
    "patience": 0,
    "accumulate": 1,
    "input_size": 0,
    "hidden": 1,
    "learning_rate": 0,
    "head_rate": 0,
    "weight_decay": 0,
    "clip_norm": 0,
    "window_mb": 1,
    "checkpoint_minutes": 0,
    "checkpoint_steps": 0,
    "keep_best": 1,
    "min_workers": 0,
    "cores_per_worker": 0,
    "max_failures": 0,
    "start_timeout_s": 1,
    "time_limit": 0,
    "views": 0,
}
_SHARES_BELOW_1: Final = ("dropout", "warmup", "label_smoothing", "ema")


class Normalisation(NamedTuple):
    """Mean and standard deviation of each RGB channel, on a scale from 0 to 1."""

    mean: Channels
    std: Channels


NON_DETERMINING_FIELDS: Final = frozenset(
    {
        "recipe",
        "address",
        "workers",
        "json",
        "describe",
        "all",
        "models",
        "min_workers",
        "max_failures",
        "start_timeout_s",
        "cores_per_worker",
        "audit",
        "checkpoint_minutes",
        "checkpoint_steps",
        "keep_best",
        "repeats",
        "promote",
        "preset",
        "time_limit",
        "accumulate",
        "operating_points",
    }
)
"""Fields that do not change the weights: where and how a training runs, and what it keeps."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(ClusterJobConfig):
    """Train a classifier on an ingested dataset and publish it as the next model version."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "network": (
            *("backbone", "weights", "mean", "std", "input_size", "cut", "pool"),
            *("head", "hidden", "dropout", "output"),
        ),
        "optimization": (
            *("preset", "regime", "head_init", "refit", "epochs", "time_limit", "batch_size"),
            *("accumulate", "optimizer"),
            *("learning_rate", "head_rate", "layer_decay", "schedule", "warmup"),
            *("weight_decay", "clip_norm", "ema", "precision", "compile", "seed"),
        ),
        "loss": ("label_smoothing", "class_weights", "sampling"),
        "augmentation": ("augment", "views"),
        "selection": (
            *("select_by", "promote", "patience", "keep_best", "repeats", "operating_points"),
        ),
        "checkpoints": ("checkpoint_minutes", "checkpoint_steps", "max_failures"),
        "cluster": (
            *("address", "workers", "min_workers", "cores_per_worker"),
            *("start_timeout_s", "window_mb"),
        ),
        "output": (*ClusterJobConfig.GROUPS["output"], "audit"),
    }

    dataset: Annotated[str, POSITIONAL] = field(default="", kw_only=False)
    """Dataset made by `afinar ingest`."""
    models: Annotated[str, POSITIONAL] = field(default="", kw_only=False)
    """Folder or s3:// prefix that holds the history of this model."""
    exclude: str = ""
    """CSV or Parquet FILE with the column uri: pictures that are left out of training, validation
    and test, such as those whose labels are in doubt."""
    describe: bool = False
    """Do not train: print the stages of the backbone with their shapes and parameters, numbered as
    --regime last:N counts them."""
    all: bool = False
    """With --describe: print every node, not one row for each stage."""

    backbone: str = "resnet18"
    """Any torchvision classification network, `efficientnet_lite0`, `small_cnn`, or `timm:NAME` for
    a network of timm (which afinar[timm] installs)."""
    weights: str = "imagenet"
    """Initial weights: `imagenet` (the first source available), `none`, `torchvision`, `package`,
    a file or URI, with `#sha256=…` if its hash must be verified, or a published model, as
    MODELS@champion, MODELS@latest or MODELS@VERSION. A model gives its backbone, its normalisation,
    and the rows of its head for the classes that the dataset has too. Such a training publishes no
    network that validates worse than the one it began with."""
    mean: str = ""
    """R,G,B: mean of the inputs that a file of weights was trained with, on a scale from 0 to 1.
    Default: that of the known weights of the backbone."""
    std: str = ""
    """R,G,B: their standard deviation; with --mean."""
    cut: str = "auto"
    """Node at which the backbone is cut (`--describe` lists the nodes). `auto`: as the model in
    --weights is, else the input of its classifier, such as the pooled features of timm's
    networks."""
    pool: Pool = "average"
    """Reduction of the activations at the cut to one vector: spatial `average`, `flatten`,
    `average+std` (spatial average and standard deviation), or the class `token` of a vision
    transformer."""
    head: Head = "linear"
    """Classifier at the cut: one `linear` layer, or an `mlp` with one hidden layer."""
    hidden: int = 256
    """Width of the hidden layer of the mlp (ReLU)."""
    dropout: float = 0.2
    """Dropout after the hidden layer of the mlp."""
    output: Output = "softmax"
    """`softmax` over all classes (cross-entropy), or one `sigmoid` for two classes (binary
    cross-entropy)."""
    input_size: int = 0
    """Side of the network's input in pixels. 0: that of the model in --weights, else the usual size
    of the backbone."""

    preset: Preset = "none"
    """Values for flags that are not given. `quick`: --regime frozen, which passes each picture
    through the network once. `best`: --augment flip,crop:0.6,brightness:0.2,contrast:0.2
    --epochs 30 --ema 0.99 --repeats 3, which takes about ten times as long as the defaults."""
    regime: str = "auto"
    """Weights to train: `frozen` (the head), `last:N` (the head and the last N stages), `full` (all
    weights), `scratch` (all, from random values), or `auto` (`frozen`, then `full`, which is
    published only if it validates better; `scratch` with --weights none)."""
    head_init: HeadInit = "solved"
    """First weights of a linear head on a pretrained backbone: `solved` by logistic regression on
    the features of the training pictures (the frozen regime without augmentation needs no epoch
    after it), or `random`. Other heads begin with random weights. The head of a model in --weights
    is kept for its classes: with `solved` if it validates no worse than the solved head; rows of
    new classes are solved or random."""
    refit: bool = False
    """With --regime frozen and a solved head: after validation has chosen the strength of its
    regularisation, solve it again on the pictures of training and validation together. What is
    reported on validation is the head before that."""
    epochs: int | Literal["auto"] = "auto"
    """Passes over the training split. `auto`: 10, or as many as make 300 steps. To train a
    published model further, give the same command with `--weights MODELS@VERSION` and the number of
    further epochs: they begin with the weights of its best epoch, a new optimizer and a new
    schedule."""
    time_limit: float = 0.0
    """Minutes after which the model is to be published. The steps are cut so that the schedule ends
    in time, with room for the evaluation; the solution of a head is never cut. 0: no limit. The
    same command resumes an interrupted training, and the time begins anew."""
    select_by: SelectBy = "top1"
    """Metric on the validation split that decides which epoch is published: `top1`, `loss`, or
    `macro-f1`, in which rare classes count as much as frequent ones. Ties go to the lower loss.
    With `top1` and `macro-f1` a solved head, epoch 0, is published unless another epoch is better
    by more than one standard error."""
    promote: Promote = "auto"
    """Make the new version the champion, which --model MODELS uses: `always`, `never`, or `auto`.
    `auto` requires that the 95 % interval of its validation accuracy lies above always answering
    the largest class, and that it is better than the champion on the same pictures, or as accurate
    with a lower loss."""
    patience: int = 0
    """Stop after this many epochs that are not better by --select-by. 0: never."""
    batch_size: int | Literal["auto"] = "auto"
    """Samples per step, over all workers together. Each worker computes its share. `auto` (or 0):
    32 per worker on CPUs; per GPU the largest power of two that still shortens the time of a
    picture, found by a trial; but at most a tenth of the training split."""
    accumulate: int = 1
    """Parts in which a worker computes its share of a step, one after the other, to save memory."""
    optimizer: Optimizer = "adamw"
    """`adamw`, `adam`, `sgd` (Nesterov momentum 0.9) or `rmsprop`."""
    learning_rate: float = 0.0
    """Peak learning rate. 0: a default for the optimizer, the regime and the kind of backbone,
    times the square root of batch size / 32 (sgd: times batch size / 32)."""
    head_rate: float = 0.0
    """Learning rate of the head, as a multiple of that of the backbone. 0: 10 for a random head on
    a pretrained backbone, else 1, also for the head of a model in --weights."""
    schedule: Schedule = "cosine"
    """Learning rate after warm-up: `cosine` or `linear` decay to zero, or `constant`."""
    warmup: float = 0.1
    """Share of all steps in which the learning rate rises from zero."""
    layer_decay: float = 0.0
    """Learning rate of a stage, as a multiple of that of the next stage. 1: the same for all. 0:
    0.75 for transformers and ConvNeXt, else 1."""
    weight_decay: float = 1e-4
    """Weight decay; decoupled for adamw. Biases, normalization layers, class tokens and position
    embeddings have none."""
    label_smoothing: float = 0.0
    """Share of the target probability that is spread over all classes."""
    class_weights: ClassWeights = "none"
    """Weights of the classes in the loss: `balanced` is the inverse of a class's share of the
    training split, `sqrt` the square root of that, `capped` the balanced weight, but at most 10
    times the smallest one."""
    sampling: Sampling = "natural"
    """`natural`: an epoch uses each training picture once. `balanced`: it uses as many pictures of
    each class, together as many as the training split has, rounded up to a multiple of the number
    of classes; those of small classes several times, each time augmented anew."""
    operating_points: str = "precision:0.95,recall:0.95"
    """For two classes: comma-separated precision:SHARE and recall:SHARE of the second class. For
    each, the threshold of its probability that reaches it on the validation split is reported, with
    precision and recall on test; or `none`."""
    clip_norm: float = 0.0
    """Clip the norm of the gradient to this value. 0: do not clip."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights; the average is evaluated and
    published. 0: no average."""
    augment: str = "auto"
    """Comma-separated: flip, flip-vertical, rotate:DEGREES, shift:SHARE, zoom:SHARE, zoom-xy:SHARE
    (each axis on its own, as in Keras), shear:DEGREES, brightness:SHARE, contrast:SHARE,
    saturation:SHARE, crop:AREA (random resized crop of at least this share of the picture), trivial
    (TrivialAugmentWide), erase:PROBABILITY (random erasing), mixup:ALPHA, cutmix:ALPHA; or `none`.
    `auto`: flip, but none for the frozen regime, whose features are computed once."""
    views: int = 0
    """With --regime frozen and --augment: number of augmented views of each training picture, whose
    features are computed once and kept in the cache of the dataset. A solved head is solved on all
    of them; else epoch e uses view e modulo this number. 0: each epoch augments anew and passes all
    pictures through the network."""
    precision: TrainPrecision = "auto"
    """`float32`, `bfloat16`, `float16` (with a scaled loss), or `auto`: bfloat16 if all workers'
    hardware multiplies it (Tensor Cores since Ampere, AMX), else float16 on GPUs with Tensor Cores
    (V100, T4), else float32. It is that of features, training and the validation of each epoch;
    the final evaluation is in float32."""
    compile: bool = False
    """Compile the network with torch.compile; worthwhile for long runs."""

    window_mb: int = 4096
    """Size of the window of shards within which samples are shuffled. Up to twice this much of
    remote shards is cached."""
    checkpoint_minutes: float = 10.0
    """Minutes after which a checkpoint is written within an epoch. There is one after every epoch,
    too, and one when a machine is about to be preempted. 0: none by time."""
    checkpoint_steps: int = 0
    """Steps between further checkpoints. 0: none by steps."""
    keep_best: int = 1
    """Number of epochs, the best on the validation split, whose weights stay in the run folder."""
    address: str | None = None
    """Ray cluster to run on: HOST:6379, `auto` for that of this machine, ray://HOST:10001, or
    `local` to start a Ray on this machine. Default: RAY_ADDRESS; without it one worker trains
    without Ray, and for several a local Ray is started."""
    workers: int = 0
    """Number of worker processes. 0: one per GPU of the cluster; without GPUs two, or one for 2,000
    training pictures or fewer."""
    min_workers: int = 0
    """Continue with as few as this many workers when the cluster shrinks, and with up to --workers
    when it grows. 0: always use all workers."""
    cores_per_worker: int = 0
    """CPU cores of each worker. 0: an equal share of the machine, on a cluster of half of the cores
    that are free (one core beside a GPU)."""
    max_failures: int = 3
    """Number of failures of workers, machines or the store to recover from. The next one ends the
    job, as does every other error at once."""
    start_timeout_s: float = 600.0
    """Seconds to wait for a cluster that is too small for the workers to grow. A cluster that is
    large enough and busy is waited for without limit."""
    audit: str = ""
    """Folder, not s3://, to which each worker appends the dataset rows of each of its steps, as
    evidence that every sample was used once."""
    repeats: int = 1
    """Train with this many seeds (at most 20), from --seed on. The best by --select-by is
    published; the summary has the interval of the validation accuracy over the seeds."""
    seed: int = 0
    """Seed of initial weights, sample order, dropout and augmentation."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value. The catalogue of backbones checks `backbone`."""
        super().__post_init__()
        self._check_ranges()
        # Reading the properties parses the strings.
        _ = self.trainable_stages, self.augmentation, self.operating_targets, self.normalisation

        require(
            self.describe or bool(self.dataset and self.models),
            "name the DATASET and where the MODELS go, or give --describe",
        )
        require(
            not self.audit.startswith("s3://"),
            f"--audit {self.audit}: give a folder; the workers append to files in it",
        )
        require(
            self.regime in {"scratch", "full", "auto"} or self.weights != "none",
            f"--regime {self.regime} with --weights none would train a head on random features; "
            "give weights, or use --regime scratch",
        )
        require(
            self.sampling == "natural" or self.class_weights == "none",
            f"--sampling {self.sampling} with --class-weights {self.class_weights} would make up "
            "for the sizes of the classes twice: give one of them",
        )
        require(
            self.regime != "scratch" or not self.has_weights_model,
            f"--regime scratch begins with random values, and --weights {self.weights} is a model: "
            "give --regime full, or no --weights",
        )

        self._check_views()
        require(
            not self.refit
            or (
                (self.regime == "frozen" and self.solves_head)
                and (not self.augmentation.any or self.views > 0)
            ),
            "--refit solves the head again: give --regime frozen with a linear head on pretrained "
            "weights, and --views if there is augmentation",
        )

    def _check_views(self) -> None:
        if not self.views:
            return
        flag = f"--views {self.views}"
        require(
            self.regime == "frozen",
            f"{flag} with --regime {self.regime}: only features of a frozen backbone can be kept; "
            "give --regime frozen",
        )
        require(
            self.augmentation.any,
            f"{flag}: views of a picture differ by augmentation; give --augment, such as "
            "flip,crop:0.6",
        )
        require(
            self.sampling == "natural",
            f"{flag} with --sampling {self.sampling}: repeated pictures would have the same view; "
            "give --class-weights balanced instead",
        )

    def _check_ranges(self) -> None:
        require(1 <= self.repeats <= 20, f"--repeats {self.repeats}: give 1 to 20")
        for name, minimum in _MINIMA.items():
            value = getattr(self, name)
            require(
                value >= minimum, f"--{name.replace('_', '-')} {value}: give at least {minimum}"
            )
        for name in _SHARES_BELOW_1:
            value = getattr(self, name)
            require(
                0 <= value < 1,
                f"--{name.replace('_', '-')} {value}: give a share from 0 to below 1",
            )
        require(
            0 <= self.layer_decay <= 1,
            f"--layer-decay {self.layer_decay}: give a factor up to 1, or 0 for the default",
        )
        require(
            self.has_auto_batch or self.samples_per_step >= 2,
            f"--batch-size {self.batch_size}: give at least 2, or auto",
        )
        require(
            self.epochs == "auto" or self.epochs >= 1,
            f"--epochs {self.epochs}: give at least 1, or auto",
        )

        if self.min_workers:
            require(
                self.min_workers <= self.workers,
                f"--min-workers {self.min_workers}: give --workers too, at least as many",
            )
            require(
                self.checkpoint_steps > 0 or self.checkpoint_minutes > 0,
                "--min-workers: when the cluster changes, training goes on from its newest "
                "checkpoint: give --checkpoint-minutes or --checkpoint-steps",
            )

    @property
    def has_auto_batch(self) -> bool:
        """True if the batch size is left to the hardware and the data."""
        return self.batch_size in {"auto", 0}

    @property
    def samples_per_step(self) -> int:
        """The batch size of a configuration that states one."""
        assert self.batch_size != "auto", "the batch size is resolved"
        return self.batch_size

    @property
    def regime_kind(self) -> str:
        """`frozen`, `last`, `full`, `scratch` or `auto`."""
        return self.regime.partition(":")[0]

    @cached_property
    def trainable_stages(self) -> int | None:
        """Number of stages, from the end of the backbone, that are trained; None for all."""
        if self.regime in {"full", "scratch", "auto"}:
            return None
        if self.regime == "frozen":
            return 0

        count = self.regime.partition(":")[2]
        if self.regime_kind != "last" or not count.isdecimal() or int(count) < 1:
            raise RequestError(
                f"--regime {self.regime!r}: choose frozen, last:N (such as last:2), full, auto "
                "or scratch"
            )
        return int(count)

    @cached_property
    def augmentation(self) -> Augmentation:
        """Random changes to training pictures."""
        return parse_augment(self.augment, self.regime)

    @cached_property
    def operating_targets(self) -> list[OperatingTarget]:
        """Precisions and recalls for which thresholds are reported."""
        return parse_operating_points(self.operating_points)

    @cached_property
    def normalisation(self) -> Normalisation | None:
        """Normalisation of the inputs of a file of weights; None if it is not given."""
        if not self.mean and not self.std:
            return None
        require(
            self.has_weights_file and self.regime != "scratch",
            "--mean and --std are those of a file of weights: give --weights FILE, or leave them "
            "out, because the normalisation of other weights is known",
        )
        require(bool(self.mean and self.std), "give --mean and --std together, each as R,G,B")
        return Normalisation(_channels("--mean", self.mean, 0), _channels("--std", self.std, 1e-6))

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        weights = "" if self.weights in NAMED_WEIGHTS else self.weights
        places = (self.dataset, self.models, weights, self.exclude, self.audit)
        return tuple(filter(None, places))

    @property
    def solves_head(self) -> bool:
        """True if the head begins with weights that are solved on features."""
        return (
            self.head_init == "solved"
            and self.head == "linear"
            and self.regime != "scratch"
            and self.weights != "none"
        )

    @property
    def has_weights_file(self) -> bool:
        """True if `weights` is a file or a URI."""
        return self.weights not in NAMED_WEIGHTS and not self.has_weights_model

    @property
    def has_weights_model(self) -> bool:
        """True if `weights` is a published model, such as MODELS@champion."""
        return _MODEL.fullmatch(self.weights) is not None


def _channels(flag: str, text: str, minimum: float) -> Channels:
    """Parse three numbers, such as 0.485,0.456,0.406. Raise RequestError for anything else."""
    try:
        red, green, blue = (float(part) for part in text.split(","))
    except ValueError:
        raise RequestError(
            f"{flag} {text!r}: give three numbers, R,G,B, such as 0.5,0.5,0.5"
        ) from None
    channels = red, green, blue
    require(
        all(minimum <= value <= 1 for value in channels),
        f"{flag} {text}: give numbers {'from 0' if minimum == 0 else 'above 0'} to 1, as of pixels "
        "divided by 255",
    )
    return channels
