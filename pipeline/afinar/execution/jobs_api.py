"""Jobs on a cluster through the Ray Jobs API: submit one, follow its log until it ends."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import aiohttp
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobSubmissionClient

from afinar.config.base import without_user
from afinar.errors import RequestError, UnknownOutcomeError
from afinar.execution.failures import TOKEN_ADVICE, first_line
from afinar.logs import log_settings

logger = logging.getLogger(__name__)

_WARM_UP_S: Final = 60.0
_RECONNECT_S: Final = 300.0
_POLL_S: Final = 1.0
_MAX_POLL_S: Final = 10.0
_SILENCE_S: Final = 120.0  # without a line; the log is then asked for again
_REQUEST_S: Final = (15.0, 60.0)  # to connect, to answer
_STOP_S: Final = 15.0
_OUR_EXIT_CODES: Final = frozenset({0, 1, 2, 129, 130, 143})
# What a dashboard that is away, restarts or stands behind a broken tunnel raises.
_NO_ANSWER: Final = (OSError, RuntimeError, ValueError, aiohttp.ClientError, RayError)

T = TypeVar("T")


@dataclass(frozen=True)
class JobEnd:
    """End of a job: Ray's status, and the exit code of afinar (1 if a signal killed it)."""

    job: str
    status: str
    exit_code: int


class _Client(JobSubmissionClient):
    """Client whose requests end: Ray's own wait without limit for a network that is silent."""

    def _do_request(self, *arguments: Any, **options: Any) -> Any:
        return super()._do_request(*arguments, **{"timeout": _REQUEST_S, **options})


def connect(address: str | None) -> JobSubmissionClient:
    """Return a client of the Jobs API at `address`, the dashboard of the cluster.

    Raises RequestError if none answers there, or if it refuses the token.
    """
    if not log_settings().verbose:
        # Ray logs every connection to the log of a job that ends.
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        return _Client(address)
    except AuthenticationError as error:
        raise RequestError(_token_problem(error)) from error
    except _NO_ANSWER as error:
        raise RequestError(
            f"no Ray Jobs API answers: {without_user(first_line(error))}. "
            "Check --address, such as http://HEAD:8265."
        ) from error


def _token_problem(error: AuthenticationError) -> str:
    return f"the cluster refuses the request ({first_line(error)}): {TOKEN_ADVICE}"


def run_job(
    client: JobSubmissionClient, command: str, entrypoint: str, environment: dict[str, Any]
) -> JobEnd:
    """Submit a job, print its log to stderr until it ends, and return how it ended.

    An interruption of this process (Ctrl-C, SIGTERM, SIGHUP) stops the job. Raises RequestError if
    the job cannot be submitted, UnknownOutcomeError if the API does not answer for minutes.
    """
    job = f"afinar-{command}-{uuid.uuid4().hex[:8]}"
    try:
        _submit(client, job, entrypoint, environment)
        logger.info(f"submitted {job}")
        return follow_job(client, job)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_stop(client, job)) from None


def _submit(
    client: JobSubmissionClient, job: str, entrypoint: str, environment: dict[str, Any]
) -> None:
    """Submit a job under a name of our own, so that a lost reply does not submit it twice.

    The API of a cluster that has just started answers before it can run a job: retry for a minute.
    """
    deadline = time.monotonic() + _WARM_UP_S
    was_sent = False
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, runtime_env=environment, submission_id=job)
        except AuthenticationError as error:
            raise RequestError(_token_problem(error)) from error
        except _NO_ANSWER as error:
            if was_sent and "already" in str(error):
                return  # the reply to an earlier attempt was lost
            is_refused = isinstance(error, RuntimeError) and "No available agent" not in str(error)
            if is_refused or time.monotonic() > deadline:
                raise RequestError(
                    f"the cluster did not take the job {job}: {without_user(first_line(error))}"
                ) from error
            was_sent = True
        else:
            return
        time.sleep(_POLL_S)


def _stop(client: JobSubmissionClient, job: str) -> str:
    """Stop a job, waiting for the answer only for seconds; return what became of it."""
    stopped = threading.Event()

    def stop() -> None:
        try:
            client.stop_job(job)
        except _NO_ANSWER as error:
            logger.debug(f"could not stop {job}: {error}")
        else:
            stopped.set()

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    thread.join(_STOP_S)
    if stopped.is_set():
        return f"job {job} is being stopped; submitted again, it continues"
    return f"job {job} goes on, because the dashboard does not answer; {_job_command('stop', job)}"


def _job_command(verb: str, job: str) -> str:
    return f"`ray job {verb} {job} --address …` {verb}s it"


def follow_job(client: JobSubmissionClient, job: str) -> JobEnd:
    """Print a job's log to stderr until the job ends.

    A connection that breaks, as at a proxy's time limit, is made again. Raises UnknownOutcomeError
    if the API does not answer for minutes.
    """
    log = _LogPrinter(client, job)
    has_ended = False
    while not has_ended:
        # Asked before the log is read: the log of a job that had ended is complete.
        has_ended = _ask(job, lambda: client.get_job_status(job).is_terminal())
        _ask(job, lambda: asyncio.run(log.print_lines()))
        if not has_ended:
            time.sleep(_POLL_S)

    info = _ask(job, lambda: client.get_job_info(job))
    exit_code = info.driver_exit_code
    return JobEnd(job, str(info.status), exit_code if exit_code in _OUR_EXIT_CODES else 1)


def _ask(job: str, question: Callable[[], T]) -> T:
    """Return an answer of the API, asking again while it is away, for minutes."""
    started, pause_s = time.monotonic(), _POLL_S
    while True:
        try:
            return question()
        except _NO_ANSWER as error:
            reason = without_user(first_line(error))
            if time.monotonic() - started > _RECONNECT_S:
                raise UnknownOutcomeError(
                    f"the dashboard has not answered for {_RECONNECT_S / 60:.0f} minutes "
                    f"({reason}): job {job} may go on; look with `ray job status {job} "
                    "--address …` before you submit it again"
                ) from error
            if pause_s == _POLL_S:
                logger.info(f"{job}: the dashboard does not answer ({reason}); asking again")
        time.sleep(pause_s)
        pause_s = min(_MAX_POLL_S, 2 * pause_s)


@dataclass
class _LogPrinter:
    """Prints a job's log. A new connection sends it from its beginning; that part is skipped."""

    client: JobSubmissionClient
    job: str
    printed: int = 0
    """Number of characters that were printed."""

    async def print_lines(self) -> None:
        """Print what the log has beyond the printed characters.

        Returns when the connection ends or is silent: a tunnel may break without notice.
        """
        position = 0
        log = aiter(self.client.tail_job_logs(self.job))
        while True:
            try:
                lines = await asyncio.wait_for(anext(log), _SILENCE_S)
            except (StopAsyncIteration, TimeoutError):
                return
            new = lines[max(0, self.printed - position) :]
            position += len(lines)
            print(new, end="", file=sys.stderr, flush=True)  # noqa: T201
            self.printed = max(self.printed, position)
