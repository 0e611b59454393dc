"""Configurations of `afinar explain`: one for each method, with what they share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Final, Literal

from afinar.config.base import POSITIONAL, ClusterJobConfig, require
from afinar.config.features import split_list
from afinar.config.train import NAMED_WEIGHTS

PLAIN: Final = "imagenet:"
"""Beginning of `--model imagenet:BACKBONE`: a whole backbone with its 1,000 ImageNet classes."""

Prior = Literal["fourier", "tv", "none"]
SaliencyMethod = Literal["gradcam", "integrated", "occlusion"]
SALIENCY_METHODS: Final[tuple[SaliencyMethod, ...]] = ("gradcam", "integrated", "occlusion")
Pick = Literal["mistakes", "any"]


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(ClusterJobConfig):
    """Options of every method."""

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "network": ("model", "weights", "input_size"),
        **ClusterJobConfig.GROUPS,
    }

    model: str
    """MODELS, whose champion is used, MODELS@latest, MODELS@VERSION, or `imagenet:BACKBONE`: a
    plain backbone with its 1,000 ImageNet classes."""
    out: str
    """Folder or s3:// prefix for pictures, JSON and the page. A rerun computes only what it
    lacks."""
    weights: str = "imagenet"
    """For imagenet:BACKBONE: `imagenet`, `torchvision`, `package`, a file or URI, or `none` (random
    weights, to compare with)."""
    input_size: int = 0
    """For imagenet:BACKBONE: side of the network's input in pixels. 0: its usual size."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(bool(self.model), "name the --model: MODELS@VERSION or imagenet:BACKBONE")
        require(bool(self.out), "name the folder for the results: --out DIR")
        require(self.input_size >= 0, f"--input-size {self.input_size}: give a size, or 0")
        is_plain = self.model.startswith(PLAIN)
        require(
            is_plain or (self.weights == "imagenet" and not self.input_size),
            "--weights and --input-size are for --model imagenet:BACKBONE; a published model has "
            "its own",
        )

    @property
    def inputs(self) -> tuple[str, ...]:
        """Locations of pictures."""
        return ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        named = (self.model,) if not self.model.startswith(PLAIN) else ()
        file = () if self.weights in NAMED_WEIGHTS else (self.weights,)
        return (*self.inputs, self.out, *named, *file)


@dataclass(frozen=True, kw_only=True)
class ExplainFeaturesConfig(ExplainConfig):
    """Show what layers of a network make of pictures: the activations of their strongest channels.

    With --dataset, each channel also has the pictures of a dataset that activate it most, from the
    features that `afinar features` has computed at that node.
    """

    pictures: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Pictures: files, s3:// objects, or folders of pictures."""
    node: str = "auto"
    """Nodes or modules of the network, comma-separated (`afinar train --describe` lists them).
    `auto`: three depths."""
    channels: int = 16
    """Number of channels that are shown of each node, the strongest first."""
    dataset: str = ""
    """Dataset whose pictures are shown beside the channels that they activate most."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require_pictures(self.pictures)
        require(1 <= self.channels <= 256, f"--channels {self.channels}: give 1 to 256")
        _ = self.nodes

    @cached_property
    def nodes(self) -> list[str]:
        """Names of the nodes; none for `auto`."""
        return [] if self.node == "auto" else split_list("--node", self.node)

    @property
    def inputs(self) -> tuple[str, ...]:
        return (*self.pictures, *filter(None, (self.dataset,)))


@dataclass(frozen=True, kw_only=True)
class ExplainIdealConfig(ExplainConfig):
    """Draw the picture that a class, or a channel, responds to most, by gradient ascent on pixels.

    The default optimises a Fourier spectrum with decorrelated colours under random shifts, scales
    and rotations. `--prior tv` is the method of courses: pixels with a loss on their variation.
    `--prior none` shows why a prior is needed: it finds noise that people do not recognise.
    """

    class_: str = ""
    """Classes, comma-separated: names, or numbers."""
    channel: str = ""
    """Channels, comma-separated, as NODE:NUMBER, such as layer3:17."""
    prior: str = "fourier,none"
    """Priors, comma-separated: `fourier`, `tv`, `none`. `none` is the naive method, for
    comparison."""
    steps: int = 512
    """Steps of gradient ascent."""
    seeds: int = 3
    """Number of pictures of each class, from different random starts."""
    dataset: str = ""
    """Dataset whose most typical pictures of the class are shown beside the ideal ones."""
    seed: int = 0
    """First random seed."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require(
            bool(self.class_ or self.channel),
            "name what to draw: --class NAME, or --channel NODE:NUMBER",
        )
        require(1 <= self.steps <= 100_000, f"--steps {self.steps}: give 1 to 100000")
        require(1 <= self.seeds <= 100, f"--seeds {self.seeds}: give 1 to 100")
        _ = (self.priors, self.class_names, self.channels)

    @cached_property
    def priors(self) -> list[Prior]:
        """Names of the priors."""
        known: tuple[Prior, ...] = ("fourier", "tv", "none")
        names = split_list("--prior", self.prior)
        for name in names:
            require(name in known, f"--prior {name!r}: choose {', '.join(known)}")
        return [prior for name in names for prior in known if prior == name]

    @cached_property
    def class_names(self) -> list[str]:
        """Names or numbers of the classes."""
        return split_list("--class", self.class_) if self.class_ else []

    @cached_property
    def channels(self) -> list[tuple[str, int]]:
        """Node and number of each channel."""
        found = []
        for item in split_list("--channel", self.channel) if self.channel else []:
            node, colon, number = item.rpartition(":")
            require(
                bool(node and colon) and number.isdigit(),
                f"--channel {item!r}: write NODE:NUMBER, such as layer3:17",
            )
            found.append((node, int(number)))
        return found

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.dataset,)))


@dataclass(frozen=True, kw_only=True)
class ExplainAdversarialConfig(ExplainConfig):
    """Change pictures by a few levels of brightness so that a model gives another answer.

    With a dataset instead of pictures, measure the accuracy on a sample of its test split as the
    change grows from 0 to 16 of 255 levels.
    """

    pictures: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Pictures (files, s3:// objects, folders), or one dataset made by `afinar ingest`."""
    target: str = ""
    """Class that the model should answer. Default: any other than now."""
    epsilon: int = 8
    """Largest change of a colour value, in levels of 255."""
    steps: int = 20
    """Steps of projected gradient descent, for each of two losses and each restart."""
    restarts: int = 2
    """Random starts for each loss."""
    sample: int = 200
    """Pictures of a dataset's test split that are attacked, drawn by their content."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require_pictures(self.pictures)
        require(1 <= self.epsilon <= 255, f"--epsilon {self.epsilon}: give 1 to 255 levels")
        require(1 <= self.steps <= 10_000, f"--steps {self.steps}: give 1 to 10000")
        require(1 <= self.restarts <= 100, f"--restarts {self.restarts}: give 1 to 100")
        require(self.sample >= 1, f"--sample {self.sample}: give a count")

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pictures


@dataclass(frozen=True, kw_only=True)
class ExplainSaliencyConfig(ExplainConfig):
    """Show which parts of pictures a prediction rests on, and how far the map can be believed.

    Beside each map: how far the confidence falls when the hottest fifth of the picture is blurred,
    and when a random fifth is.
    """

    pictures: Annotated[tuple[str, ...], POSITIONAL] = ()
    """Pictures (files, s3:// objects, folders), or one dataset made by `afinar ingest`."""
    method: str = ",".join(SALIENCY_METHODS)
    """Maps, comma-separated: `gradcam` (LayerCAM for shallow cuts), `integrated` (integrated
    gradients), `occlusion`."""
    target: str = ""
    """Class that is explained. Default: the predicted one."""
    node: str = "auto"
    """Node for `gradcam`. `auto`: the last one with positions, of a vision transformer that before
    its last block."""
    class_: str = ""
    """Explain only pictures of the dataset with this label."""
    pick: Pick = "mistakes"
    """Choose from the dataset the `mistakes` with the highest scores, or `any` pictures."""
    sample: int = 12
    """Number of pictures of a dataset's test split that are explained."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        require_pictures(self.pictures)
        require(self.sample >= 1, f"--sample {self.sample}: give a count")
        _ = self.methods

    @cached_property
    def methods(self) -> list[SaliencyMethod]:
        """Names of the methods."""
        names = split_list("--method", self.method)
        for name in names:
            require(
                name in SALIENCY_METHODS, f"--method {name!r}: choose {', '.join(SALIENCY_METHODS)}"
            )
        return [method for name in names for method in SALIENCY_METHODS if method == name]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.pictures


def require_pictures(pictures: tuple[str, ...]) -> None:
    """Raise RequestError if no picture is named."""
    require(bool(pictures) and all(pictures), "name one or more pictures")
