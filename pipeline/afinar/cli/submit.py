"""`afinar submit -- COMMAND …`."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import shlex
import shutil
import sys
import tempfile
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from afinar.cli.formatting import format_table
from afinar.config.base import POSITIONAL, JobConfig
from afinar.config.recipes import find_recipe
from afinar.config.train import TrainConfig
from afinar.errors import RequestError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

_WARM_UP_S: Final = 60.0
SUBMITTABLE: Final = ("ingest", "train", "label")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(JobConfig):
    """Run a job through the Ray Jobs API, follow its log, and exit with its exit code.

    `address` is the dashboard of the cluster, `recipe` the recipe of the job.
    """

    argv: tuple[str, ...]
    """Command and arguments of the job."""


def configure(argv: list[str]) -> SubmitConfig:
    """Parse the arguments, and those of the job, so that a mistake is found before submission."""
    parser = argparse.ArgumentParser(
        prog="afinar submit",
        usage="afinar submit [--address ADDRESS] -- COMMAND …",
        description="Run a job through the Ray Jobs API, follow it, and exit with its exit code.",
        epilog=(
            "Example: afinar submit --address http://HEAD:8265 -- "
            "ingest s3://bucket/pictures s3://bucket/dataset"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address", help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
    )

    position = argv.index("--") if "--" in argv else len(argv)
    job = argv[position + 1 :]
    options, unknown = parser.parse_known_args(argv[:position])
    if unknown or not job or job[0] not in SUBMITTABLE:
        raise RequestError(f"after -- write one of {', '.join(SUBMITTABLE)} with its arguments")

    config: JobConfig = importlib.import_module(f"afinar.cli.{job[0]}").configure(job[1:])
    _require_shared_paths(config)
    return SubmitConfig(address=options.address, argv=tuple(job), recipe=config.recipe)


def _require_shared_paths(config: JobConfig) -> None:
    """Raise RequestError for a relative path: it has no meaning on another machine."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        is_path = (
            POSITIONAL in getattr(hint, "__metadata__", ())
            or name == "model"
            or (name == "weights" and isinstance(config, TrainConfig) and config.has_weights_file)
            or (name in {"labels", "group"} and value.endswith((".csv", ".parquet")))
            or (name == "forecast" and bool(value))
        )
        if is_path and not value.startswith(("s3://", "/")):
            raise RequestError(
                f"{value!r} is a path on this machine: give s3://… or an absolute path that every "
                "node mounts"
            )


def run(config: SubmitConfig) -> dict[str, Any]:
    """Submit the job, follow it until it ends, and return its status. Ctrl-C stops the job."""
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(config.address)
    except (ConnectionError, RuntimeError) as error:
        raise RequestError(
            f"no Ray Jobs API answers: {error}. Check --address, such as http://HEAD:8265."
        ) from error

    with tempfile.TemporaryDirectory(prefix="afinar-submit-") as folder:
        argv, environment = _with_recipe(config, Path(folder))
        job = _submit(client, shlex.join(["afinar", *argv]), environment)
    logger.info(f"submitted {job}")

    try:
        while not client.get_job_status(job).is_terminal():
            _follow(client, job)
    except KeyboardInterrupt:
        client.stop_job(job)
        raise

    info = client.get_job_info(job)
    # A driver that was killed by a signal has another exit code.
    is_ours = info.driver_exit_code in {0, 1, 2, 130}
    exit_code = info.driver_exit_code if is_ours else 1
    return {"job": job, "status": str(info.status), "exit_code": exit_code}


def _submit(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any]) -> str:
    """Submit a job and return its id.

    The API of a cluster that has just started answers before it can run a job: retry for a minute.
    """
    deadline = time.monotonic() + _WARM_UP_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _with_recipe(config: SubmitConfig, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the job's arguments and its runtime environment.

    A recipe is a file on this machine: a copy of it becomes the working directory of the job.
    """
    argv = list(config.argv)
    if config.recipe is None:
        return argv, {}

    shutil.copy(find_recipe(config.recipe), folder / "recipe.toml")
    for position, argument in enumerate(argv):
        if argument == "--recipe":
            argv[position + 1] = "recipe.toml"
        elif argument.startswith("--recipe="):
            argv[position] = "--recipe=recipe.toml"
    return argv, {"working_dir": str(folder)}


def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print the job's log until it ends or the connection breaks, as at a proxy's time limit."""

    async def print_log() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", file=sys.stderr, flush=True)  # noqa: T201

    try:
        asyncio.run(print_log())
    except (RuntimeError, OSError) as error:
        logger.info(f"the connection to the log broke ({error}); following again")
    time.sleep(1)


def describe(summary: dict[str, Any]) -> str:
    """Return how the job ended as text."""
    return format_table(
        [
            ("job", summary["job"]),
            ("status", summary["status"]),
            ("exit code", str(summary["exit_code"])),
        ]
    )
