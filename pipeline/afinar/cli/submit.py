"""`afinar submit -- COMMAND …`: run a job through the Ray Jobs API, follow it, forward its exit code."""

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
from typing import TYPE_CHECKING, Any

from afinar.cli.run_folder import table
from afinar.config.base import POSITIONAL, JobConfig
from afinar.config.train import NAMED_WEIGHTS
from afinar.errors import RequestError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

_WARM_UP_S = 60.0
SUBMITTABLE = ("ingest", "train", "label")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """A job's words, checked here as far as they can be, and the cluster's Jobs API."""

    address: str | None
    words: tuple[str, ...]
    recipe: str | None


def configure(words: list[str]) -> SubmitConfig:
    """Parse and check, the submitted job's own flags included: a misspelt one is not worth a trip to a cluster."""
    parser = argparse.ArgumentParser(
        prog="afinar submit",
        usage="afinar submit [--address ADDRESS] -- COMMAND …",
        description=__doc__,
        epilog="Example: afinar submit --address http://HEAD:8265 -- ingest s3://bucket/pictures s3://bucket/dataset",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address", help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
    )
    ours, job = _at_dashes(words)
    known, unknown = parser.parse_known_args(ours)
    if unknown or not job or job[0] not in SUBMITTABLE:
        raise RequestError(f"after -- write one of {', '.join(SUBMITTABLE)} with its arguments")
    config: JobConfig = importlib.import_module(f"afinar.cli.{job[0]}").configure(job[1:])
    _require_shared(config)
    return SubmitConfig(address=known.address, words=tuple(job), recipe=config.recipe)


def _at_dashes(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    position = words.index("--")
    return words[:position], words[position + 1 :]


def _require_shared(config: JobConfig) -> None:
    """Relative paths mean nothing on another machine."""
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        place = POSITIONAL in getattr(hint, "__metadata__", ()) or name == "model"
        place |= name == "weights" and value not in NAMED_WEIGHTS
        place |= name in {"labels", "group"} and value.endswith((".csv", ".parquet"))
        place |= name == "forecast" and bool(value)
        if place and not value.startswith(("s3://", "/")):
            raise RequestError(
                f"{value!r} is a path on this machine: give s3://… or an absolute path that every node mounts"
            )


def run(config: SubmitConfig) -> dict[str, Any]:
    """Submit, follow, and report how it ended. Interrupting stops the job."""
    from ray.job_submission import JobSubmissionClient

    try:
        client = JobSubmissionClient(config.address)
    except (ConnectionError, RuntimeError) as error:
        raise RequestError(
            f"no Ray Jobs API answers: {error}. Check --address, such as http://HEAD:8265."
        ) from error
    with tempfile.TemporaryDirectory(prefix="afinar-submit-") as folder:
        words, environment = _with_recipe(config, Path(folder))
        job = _submit(client, shlex.join(["afinar", *words]), environment)
    logger.info(f"submitted {job}")
    try:
        while not client.get_job_status(job).is_terminal():
            _follow(client, job)
    except KeyboardInterrupt:
        client.stop_job(job)
        raise
    info = client.get_job_info(job)
    code = info.driver_exit_code
    known = code in {0, 1, 2, 130}  # a driver that a signal ended has another
    return {"job": job, "status": str(info.status), "exit_code": code if known else 1}


def _submit(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any]) -> str:
    """Submit; a cluster that has only just started answers before it can take a job, so wait a minute for it."""
    deadline = time.monotonic() + _WARM_UP_S
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, runtime_env=environment)
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1)


def _with_recipe(config: SubmitConfig, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """A recipe lies on this machine, so it travels as the job's working folder."""
    words = list(config.words)
    if config.recipe is None:
        return words, {}
    shutil.copy(config.recipe, folder / "recipe.toml")
    carried = [
        "recipe.toml" if before == "--recipe" else word.replace(config.recipe, "recipe.toml")
        if word.startswith("--recipe=") else word
        for before, word in zip(["", *words], words, strict=False)
    ]  # fmt: skip
    return carried, {"working_dir": str(folder)}


def _follow(client: JobSubmissionClient, job: str) -> None:
    """Show the log until it ends, or the connection does: a proxy that hangs up has not ended the job."""

    async def show() -> None:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", file=sys.stderr, flush=True)  # noqa: T201

    try:
        asyncio.run(show())
    except (RuntimeError, OSError) as error:
        logger.info(f"the log's connection broke ({error}); following again")
    time.sleep(1)


def describe(summary: dict[str, Any]) -> str:
    """How it ended."""
    return table(
        [
            ("job", summary["job"]),
            ("status", summary["status"]),
            ("exit code", str(summary["exit_code"])),
        ]
    )
