"""Configuration of `afinar nightly`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from afinar.config.base import POSITIONAL, UnitJobConfig, require
from afinar.config.ingest import FitChoice

NightAction = Literal["run", "renew-test"]


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """Limits of the gate, the table `[gate]` of a recipe. A limit of 0 is not checked."""

    EXACT_KEYS: ClassVar[bool] = True

    mode: Literal["auto", "hold"] = "auto"
    """`hold` prepares everything and leaves the promotion to a person."""
    alpha: float = 0.10
    """Probability of ever promoting a model that is no better, for one test set."""
    max_class_drop: float = 0.10
    """Largest fall of a class's recall. A larger one refuses if chance does not explain it."""
    max_loss_increase: float = 0.05
    """Largest increase of the loss of the confidence on the test pictures, nats: -log p of a right
    answer and -log (1 - p) of a wrong one, with its calibrated probability p."""
    max_slowdown: float = 1.5
    """Largest factor by which the forward pass of a picture may take longer."""
    max_growth: float = 2.0
    """Largest factor by which the weights may grow."""
    min_new: int = 0
    """Smallest number of pictures that are new since the champion was trained."""
    min_agreement: float = 0.5
    """Smallest share of unlabelled pictures for which both models give the same answer."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        require(0 < self.alpha < 1, f"[gate] alpha = {self.alpha}: give a probability")
        for name in ("max_class_drop", "max_loss_increase", "max_slowdown", "max_growth"):
            value = getattr(self, name)
            require(value >= 0, f"[gate] {name} = {value}: give a limit, or 0 for none")
        require(self.min_new >= 0, f"[gate] min_new = {self.min_new}: give a count, or 0")
        require(
            0 <= self.min_agreement <= 1,
            f"[gate] min_agreement = {self.min_agreement}: give a share, or 0 for none",
        )


@dataclass(frozen=True, kw_only=True)
class WatchRules:
    """Checks of labels and pictures before training, the table `[watch]` of a recipe."""

    EXACT_KEYS: ClassVar[bool] = True

    labels: bool = True
    """Hold out tonight's pictures whose labels a confident champion contradicts, of classes and
    folders where it does so more often than usual."""
    inputs: bool = True
    """Compare tonight's pictures with earlier ones."""


@dataclass(frozen=True, kw_only=True)
class HookRules:
    """Receivers of a message when a night ends, the table `[hooks]` of a recipe."""

    EXACT_KEYS: ClassVar[bool] = True

    url: str = ""
    """Address that gets a JSON object by POST. AFINAR_WEBHOOK_SECRET signs it: HMAC-SHA256 of the
    body, in the header X-Afinar-Signature."""
    command: str = ""
    """Command that gets the same object on its standard input."""
    on: tuple[str, ...] = ("held", "refused", "failed")
    """Outcomes that are told."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        require(
            not self.url or self.url.startswith(("http://", "https://")),
            f"[hooks] url = {self.url!r}: give an http:// or https:// address",
        )
        known = {"promoted", "held", "refused", "no change", "failed"}
        wrong = sorted(set(self.on) - known)
        require(not wrong, f"[hooks] on = {wrong}: give some of {', '.join(sorted(known))}")


@dataclass(frozen=True, kw_only=True)
class NightlyConfig(UnitJobConfig):
    """Run a night: ingest what changed, train a candidate, promote it if it is better, and label.

    Every step is recorded in NIGHTS. A night that was killed goes on where it stopped. A night at
    which nothing changed ends in seconds. `renew-test` draws a new test set from the dataset. In a
    recipe, the options of the gate, the watch and the hooks are the keys of the tables `[gate]`,
    `[watch]` and `[hooks]`.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "places": ("source", "dataset", "models", "nights", "archive", "predictions"),
        "data": ("labels", "split", "size", "fit", "max_reject_rate", "seed"),
        "network": ("backbone", "weights", "regime", "begin", "training"),
        "decision": ("promote", "relabel", "lease_minutes", "gate", "watch", "hooks"),
        "cluster": ("address", "workers", "unit_timeout_s"),
        "output": UnitJobConfig.GROUPS["output"],
    }

    action: Annotated[NightAction, POSITIONAL] = "run"
    """Run a night, or draw a new frozen test set."""

    source: str = ""
    """Labelled pictures: SOURCE of `afinar ingest`."""
    dataset: str = ""
    """Dataset that is made of them."""
    models: str = ""
    """History of the model. Its champion is what a night may replace."""
    nights: str = ""
    """Folder or s3:// prefix of the nights: their steps, reports, lock and test sets."""
    archive: str = ""
    """Pictures to label every night: a folder, a prefix or a list. Default: none."""
    predictions: str = ""
    """Prediction folder of the archive."""

    labels: str = "folder"
    """Source of the labels: `folder`, `none` or a table, as in `afinar ingest`."""
    split: str = "0.7,0.15,0.15"
    """Shares of train, validation and test, as in `afinar ingest`."""
    size: int = 0
    """Side of the stored picture, as in `afinar ingest`."""
    fit: FitChoice = "auto"
    """Method that makes a picture square, as in `afinar ingest`."""
    max_reject_rate: float = 0.05
    """Highest share of rejected pictures. Above it the night fails and publishes nothing."""
    seed: int = 0
    """Seed of the split and of the training."""

    backbone: str = "resnet18"
    """Network of the candidate, as in `afinar train`."""
    weights: str = "imagenet"
    """Initial weights, as in `afinar train`."""
    regime: str = "frozen"
    """Regime of the training, as in `afinar train`. A frozen candidate has a new head every night,
    and only changed pictures pass through the network."""
    begin: Literal["afresh", "champion"] = "afresh"
    """First weights of a candidate: those of --weights, or those of the champion if there is one,
    which saves epochs of a regime that trains the backbone and may generalise worse."""
    training: str = ""
    """Recipe with further options of `afinar train`: a file, or a name."""

    promote: Literal["gate", "anyway"] = "gate"
    """`anyway` promotes the candidate whatever the gate decides; this is recorded."""
    relabel: Literal["new", "all"] = "new"
    """After a promotion, label only pictures that no champion has labelled, or all of them."""
    lease_minutes: float = 10.0
    """Another night may take the lock over this long after a night was killed."""
    gate: GateRules = field(default_factory=GateRules)
    """Limits of the gate."""
    watch: WatchRules = field(default_factory=WatchRules)
    """Checks of labels and pictures before training."""
    hooks: HookRules = field(default_factory=HookRules)
    """Receivers of a message about the outcome."""

    def __post_init__(self) -> None:
        """Raise RequestError for a wrong value."""
        super().__post_init__()
        for name in ("source", "dataset", "models", "nights"):
            require(
                bool(getattr(self, name)),
                f"--{name} is missing: a recipe of nights names source, dataset, models and nights",
            )
        require(
            bool(self.archive) == bool(self.predictions),
            "--archive and --predictions go together: name both, or none",
        )
        require(
            0 <= self.max_reject_rate <= 1,
            f"--max-reject-rate {self.max_reject_rate}: give a share, 0 to 1",
        )
        require(
            self.begin == "afresh" or self.regime not in {"scratch", "frozen"},
            f"--begin champion with --regime {self.regime}: it is for regimes that train a "
            "pretrained backbone, such as full",
        )
        require(
            self.lease_minutes > 0,
            f"--lease-minutes {self.lease_minutes:g}: give minutes above 0",
        )

    @property
    def paths(self) -> tuple[str, ...]:
        """Locations that the job reads and writes."""
        places = (self.source, self.dataset, self.models, self.nights)
        return (*places, *filter(None, (self.archive, self.predictions)))
