"""Jobs on a cluster through the Ray Jobs API: submit one, follow its log until it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

from ray.job_submission import JobSubmissionClient

from afinar.errors import RequestError

logger = logging.getLogger(__name__)

_WARM_UP_S: Final = 60.0
_RECONNECT_S: Final = 60.0
_POLL_S: Final = 1.0
_OUR_EXIT_CODES: Final = frozenset({0, 1, 2, 130})


@dataclass(frozen=True)
class JobEnd:
    """End of a job: Ray's status, and the exit code of afinar (1 if a signal killed it)."""

    status: str
    exit_code: int


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the Jobs API at `address`, the dashboard of the cluster.

    Raises RequestError if none answers there.
    """
    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RequestError(
            f"no Ray Jobs API answers: {error}. Check --address, such as http://HEAD:8265."
        ) from error


def submit_job(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any]) -> str:
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


def follow_job(client: JobSubmissionClient, job: str) -> JobEnd:
    """Print a job's log to stderr until the job ends. Ctrl-C stops the job.

    A connection that breaks, as at a proxy's time limit, is made again. Its error is raised if the
    API does not answer for a minute.
    """
    log = _LogPrinter(client, job)
    try:
        _follow(client, job, log)
    except KeyboardInterrupt:
        client.stop_job(job)
        raise

    info = client.get_job_info(job)
    exit_code = info.driver_exit_code
    return JobEnd(str(info.status), exit_code if exit_code in _OUR_EXIT_CODES else 1)


def _follow(client: JobSubmissionClient, job: str, log: _LogPrinter) -> None:
    answered_s = time.monotonic()
    while True:
        try:
            # Asked before the log is read: the log of a job that had ended is complete.
            has_ended = client.get_job_status(job).is_terminal()
            answered_s = time.monotonic()
            asyncio.run(log.print_lines())
        except (RuntimeError, OSError) as error:
            if time.monotonic() - answered_s > _RECONNECT_S:
                raise
            logger.info(f"the connection to the log broke ({error}); following again")
        else:
            if has_ended:
                return
        time.sleep(_POLL_S)


@dataclass
class _LogPrinter:
    """Prints a job's log. A new connection sends it from its beginning; that part is skipped."""

    client: JobSubmissionClient
    job: str
    printed: int = 0
    """Number of characters that were printed."""

    async def print_lines(self) -> None:
        """Print what the log has beyond the printed characters, until the connection ends."""
        position = 0
        async for lines in self.client.tail_job_logs(self.job):
            new = lines[max(0, self.printed - position) :]
            position += len(lines)
            print(new, end="", file=sys.stderr, flush=True)  # noqa: T201
            self.printed = max(self.printed, position)
