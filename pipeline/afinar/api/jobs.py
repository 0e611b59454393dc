"""The jobs as functions, with the arguments and the results of the command line.

Each function takes the fields of the job's configuration: the positions of the command line first,
its flags as keywords (`--batch-size 64` is `batch_size=64`). They run through the modules of
`cli/`, so that both give the same results.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import textwrap
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import afinar.cli.compare
import afinar.cli.ingest
import afinar.cli.label
import afinar.cli.train
from afinar.cli.arguments import field_docstrings
from afinar.cli.formatting import escape_names
from afinar.config.base import JobConfig
from afinar.config.compare import CompareConfig
from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.config.presets import load_defaults
from afinar.config.strict import MismatchError, structure
from afinar.config.train import TrainConfig
from afinar.errors import RequestError
from afinar.logs import configure_logging, log_settings
from afinar.models.networks.catalogue import require_backbone
from afinar.storage.names import new_run

if TYPE_CHECKING:
    from afinar.api.dataset import Dataset
    from afinar.api.model import Model
    from afinar.predictions.part_reader import Predictions

P = ParamSpec("P")
Config = TypeVar("Config", bound=JobConfig)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, repr=False)
class JobResult:
    """Result of a job. `summary` is what `--json` prints; the text of it is what is shown."""

    summary: dict[str, Any]
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text)}</pre>"


class IngestResult(JobResult):
    """Result of an ingest."""

    @property
    def dataset(self) -> Dataset:
        """The version of the dataset that this ingest wrote, or found to be up to date."""
        from afinar.api.dataset import open_dataset

        return open_dataset(self.summary["dataset"], version=self.summary["version"])


class TrainResult(JobResult):
    """Result of a training."""

    @property
    def model(self) -> Model:
        """The published model, on the CPU."""
        from afinar.api.model import open_model

        return open_model(self.summary["model"])

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the splits `val` and `test`."""
        metrics: dict[str, Any] = self.summary["metrics"]
        return metrics

    @property
    def report(self) -> str:
        """URI of the HTML page of the run."""
        return str(self.summary["report"])


class CompareResult(JobResult):
    """Result of a comparison."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table: dataset, network, head, regime, metrics, seconds."""
        parts = self.summary.get("datasets", [self.summary])
        return [{"dataset": part["dataset"], **row} for part in parts for row in part["rows"]]

    @property
    def report(self) -> str:
        """URI of the HTML page of the comparison."""
        return str(self.summary["report"])


class LabelResult(JobResult):
    """Result of a labelling."""

    @property
    def predictions(self) -> Predictions:
        """All predictions of this model and these options, of earlier runs too."""
        from afinar.predictions.part_reader import open_predictions

        if "picture" in self.summary:
            raise RequestError(
                "nothing was written: label() was called without a folder for the predictions; "
                "`summary` has the classes of the picture"
            )
        return open_predictions(self.summary["predictions"], self.summary["partition"])

    @property
    def report(self) -> str | None:
        """URI of the HTML page of the run, None if there was nothing to do."""
        report: str | None = self.summary["report"]
        return report


def _takes(
    make_config: Callable[P, Config],
) -> Callable[[Callable[[Config], Result]], Callable[P, Result]]:
    """Turn a function of a job's configuration into one of the configuration's fields."""
    config_class = typing.cast("type[Config]", make_config)

    def decorate(run: Callable[[Config], Result]) -> Callable[P, Result]:
        def call(*args: P.args, **kwargs: P.kwargs) -> Result:
            config = _configure(run.__name__, config_class, args, kwargs)
            with _job_logging(config):
                return run(config)

        signature = inspect.signature(config_class)
        call.__name__ = call.__qualname__ = run.__name__
        call.__doc__ = f"{run.__doc__}\n\nArguments:\n{_describe_fields(config_class)}"
        call.__dict__["__signature__"] = signature.replace(
            return_annotation=run.__annotations__["return"]
        )
        return call

    return decorate


def _describe_fields(config_class: type[JobConfig]) -> str:
    """Return the names of a configuration's fields with the texts of `--help`."""
    texts = field_docstrings(config_class)
    names = inspect.signature(config_class).parameters
    wrapped = (
        textwrap.fill(f"{name}: {texts[name]}", 96, initial_indent="  ", subsequent_indent="    ")
        for name in names
    )
    return "\n".join(wrapped)


def _configure(
    function: str, config_class: type[Config], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Config:
    """Return the configuration. Raises RequestError for wrong arguments, as the command does."""
    signature = inspect.signature(config_class)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        raise RequestError(f"{function}(): {error}{_suggestion(signature, kwargs)}") from None

    given = {
        name: fspath(value) if isinstance(value, PathLike) else value
        for name, value in given.items()
    }
    hints = typing.get_type_hints(config_class)
    for name, value in given.items():
        try:
            given[name] = structure(value, hints[name])
        except MismatchError as error:
            raise RequestError(f"{function}({name}={value!r}): {error}") from error
    values = load_defaults(config_class, given.get("recipe"), given.get("preset")) | given
    try:
        return config_class(**values)
    except TypeError as error:  # an argument without a default is missing
        message = str(error).replace(f"{config_class.__name__}.__init__", function)
        raise RequestError(message) from None


def _suggestion(signature: inspect.Signature, kwargs: dict[str, Any]) -> str:
    """Return the end of a message on names that do not exist."""
    for name in kwargs:
        if name not in signature.parameters:
            similar = difflib.get_close_matches(name, signature.parameters)
            return f": do you mean {' or '.join(similar)}?" if similar else ""
    return ""


@contextmanager
def _job_logging(config: JobConfig) -> Iterator[None]:
    """Log to stderr during a job, unless the caller's program has configured logging."""
    logger, settings = logging.getLogger("afinar"), log_settings()
    has_handlers, handlers, level = logger.hasHandlers(), list(logger.handlers), logger.level

    def restore() -> None:
        logger.handlers[:] = handlers
        logger.setLevel(level)

    configure_logging(config.log_format, run=new_run(), verbose=config.verbose)
    if has_handlers:
        restore()
    try:
        yield
    finally:
        configure_logging(settings.log_format, run=settings.run, verbose=settings.verbose)
        restore()


@_takes(IngestConfig)
def ingest(config: IngestConfig) -> IngestResult:
    """Convert pictures to an Arrow dataset, or update it, as `afinar ingest` does.

    Example: `ingest("pictures/", "dataset/", size=224)`. Raises RequestError for a wrong request,
    ShortfallError if too many pictures are rejected.
    """
    summary = afinar.cli.ingest.run(config)
    text = afinar.cli.ingest.describe(escape_names(summary))
    return IngestResult(summary=summary, text=text)


@_takes(TrainConfig)
def train(config: TrainConfig) -> TrainResult:
    """Train a classifier and publish it as the next version of a model, as `afinar train` does.

    Example: `train("dataset/", "models/", backbone="resnet18", epochs=5)`. An interrupted
    training is resumed by the same call. Raises RequestError for a wrong request, ShortfallError
    if the training cannot be finished.
    """
    require_backbone(config.backbone)
    summary = afinar.cli.train.run(config)
    text = afinar.cli.train.describe(escape_names(summary))
    return TrainResult(summary=summary, text=text)


@_takes(CompareConfig)
def compare(config: CompareConfig) -> CompareResult:
    """Compare backbones, cuts, heads and regimes on a dataset, as `afinar compare` does.

    Example: `compare("dataset/", "runs/", backbone="resnet18,efficientnet_lite0")`. What is
    finished is not computed again. Raises RequestError for a wrong request.
    """
    for backbone in config.backbones:
        require_backbone(backbone)
    summary = afinar.cli.compare.run(config)
    text = afinar.cli.compare.describe(escape_names(summary))
    return CompareResult(summary=summary, text=text)


@_takes(LabelConfig)
def label(config: LabelConfig) -> LabelResult:
    """Label pictures with a published model (batch inference), as `afinar label` does.

    Example: `label("archive/", "predictions/", model="models/")`. Raises RequestError for a wrong
    request, ShortfallError if too many pictures are rejected; the others are labelled all the same.
    """
    summary = afinar.cli.label.run(config)
    text = afinar.cli.label.describe(escape_names(summary))
    return LabelResult(summary=summary, text=text)
