"""`afinar submit -- COMMAND …`."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from afinar.cli.formatting import format_table
from afinar.config.base import JobConfig
from afinar.config.recipes import find_recipe
from afinar.errors import RequestError

SUBMITTABLE: Final = (
    *("ingest", "train", "label", "nightly"),
    *("features", "compare", "similar", "evaluate", "explain"),
)


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(JobConfig):
    """Run a job through the Ray Jobs API, follow its log, and exit with its exit code.

    `recipe` is the recipe of the job.
    """

    address: str | None = None
    """Dashboard of the cluster."""
    argv: tuple[str, ...]
    """Command and arguments of the job."""
    training: str = ""
    """Recipe of a night's training."""


def configure(argv: list[str]) -> SubmitConfig:
    """Parse the arguments, and those of the job, so that a mistake is found before submission."""
    parser = argparse.ArgumentParser(
        prog="afinar submit",
        usage="afinar submit [--address ADDRESS] [--json] -- COMMAND …",
        description="Run a job through the Ray Jobs API, follow it, and exit with its exit code.",
        epilog=(
            "Ctrl-C, SIGTERM and SIGHUP stop the job. Exit code 3: the dashboard no longer "
            "answers, and the job may go on; or another night holds the lock.\n\n"
            "Example: afinar submit --address http://HEAD:8265 -- "
            "ingest s3://bucket/pictures s3://bucket/dataset"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--address", help="dashboard of the cluster; default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object to stdout")

    position = argv.index("--") if "--" in argv else len(argv)
    job = argv[position + 1 :]
    options, unknown = parser.parse_known_args(argv[:position])
    if unknown and unknown[0].startswith("-"):
        raise RequestError(f"afinar submit has no option {unknown[0]}: write the job's after --")
    if unknown or not job or job[0] not in SUBMITTABLE:
        raise RequestError(f"after -- write one of {', '.join(SUBMITTABLE)} with its arguments")

    config: JobConfig = importlib.import_module(f"afinar.cli.{job[0]}").configure(job[1:])
    _require_shared_paths(config)
    return SubmitConfig(
        address=options.address,
        json=options.json,
        argv=tuple(job),
        recipe=config.recipe,
        training=getattr(config, "training", ""),
    )


def _require_shared_paths(config: JobConfig) -> None:
    """Raise RequestError for a relative path: it has no meaning on another machine."""
    for path in config.paths:
        if not path.startswith(("s3://", "/")):
            raise RequestError(
                f"{path!r} is a path on this machine: give s3://… or an absolute path that every "
                "node mounts"
            )


def run(config: SubmitConfig) -> dict[str, Any]:
    """Submit the job, follow it until it ends, and return its status. Ctrl-C stops the job."""
    from afinar.execution.jobs_api import connect, run_job

    client = connect(config.address)
    with tempfile.TemporaryDirectory(prefix="afinar-submit-") as folder:
        argv, environment = _with_recipe(config, Path(folder))
        end = run_job(client, config.argv[0], shlex.join(["afinar", *argv]), environment)
    return {"job": end.job, "status": end.status, "exit_code": end.exit_code}


def _with_recipe(config: SubmitConfig, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the job's arguments and its runtime environment.

    A recipe is a file on this machine: a copy of it becomes the working directory of the job. So
    does the recipe of a night's training.
    """
    argv = list(config.argv)
    if config.training:
        shutil.copy(find_recipe(config.training), folder / "training.toml")
        argv = [*_without(argv, "--training"), "--training", "training.toml"]
    if config.recipe is not None:
        shutil.copy(find_recipe(config.recipe), folder / "recipe.toml")
        argv = [*_without(argv, "--recipe"), "--recipe", "recipe.toml"]
    if not config.training and config.recipe is None:
        return argv, {}
    return argv, {"working_dir": str(folder)}


def _without(argv: list[str], flag: str) -> list[str]:
    """Return arguments without a flag and its value."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == flag:
            next(words, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept


def describe(summary: dict[str, Any]) -> str:
    """Return how the job ended as text."""
    return format_table(
        [
            ("job", summary["job"]),
            ("status", summary["status"]),
            ("exit code", str(summary["exit_code"])),
        ]
    )
