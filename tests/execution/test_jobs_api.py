"""Submitting a job and following its log over connections that break."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from afinar.cli.main import main
from afinar.errors import RequestError, UnknownOutcomeError
from afinar.execution import jobs_api

LOG = ["first\n", "second\n", "third\n"]


class FakeClient:
    """A client of the Jobs API that fails while the first two connections send the log.

    `errors` are raised by the next calls, one each, before anything else.
    """

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.connections = 0
        self.submitted: list[str] = []
        self.stopped: list[str] = []

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def submit_job(self, *, entrypoint: str, runtime_env: Any, submission_id: str) -> str:
        self.submitted.append(submission_id)
        self._fail()
        return submission_id

    def get_job_status(self, job: str) -> JobStatus:
        self._fail()
        return JobStatus.SUCCEEDED if self.connections >= 2 else JobStatus.RUNNING

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.connections += 1
        for number, line in enumerate(LOG, 1):
            yield line
            if number == self.connections < 3:
                raise RuntimeError("the connection was closed")

    def get_job_info(self, job: str) -> Any:
        self._fail()
        return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)

    def stop_job(self, job: str) -> bool:
        self._fail()
        self.stopped.append(job)
        return True


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "_POLL_S", 0.0)


def run_job(client: Any) -> jobs_api.JobEnd:
    return jobs_api.run_job(client, "ingest", "afinar ingest a b", {})


@pytest.mark.parametrize(
    "error", [requests.ConnectionError("refused"), RuntimeError("502"), ValueError("no JSON")]
)
def test_log_is_printed_once_over_connections_and_polls_that_fail(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    client: Any = FakeClient(error)
    end = jobs_api.follow_job(client, "job")
    assert (end.job, end.exit_code) == ("job", 0)
    assert client.connections >= 3
    lines = capsys.readouterr().err.splitlines(keepends=True)
    notes = [line for line in lines if "asking again" in line]
    assert notes
    assert all(line.startswith("job: ") for line in notes), "the job is named"
    assert [line for line in lines if line not in notes] == LOG


def test_api_that_stays_away_ends_the_following_with_a_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs_api, "_RECONNECT_S", -1.0)
    client: Any = FakeClient(requests.ConnectionError("http://user:secret@head refused"))
    with pytest.raises(UnknownOutcomeError, match="job afinar-ingest-[0-9a-f]{8} may go on") as end:
        run_job(client)
    assert end.value.exit_code == 3
    assert "secret" not in str(end.value)


def test_submission_whose_reply_was_lost_is_not_repeated_under_another_name() -> None:
    lost = requests.ConnectionError("reset")
    taken = RuntimeError("Job with submission_id afinar-ingest-0 already exists")
    client: Any = FakeClient(lost, taken)
    assert run_job(client).exit_code == 0
    assert len(client.submitted) == 2
    assert len(set(client.submitted)) == 1


def test_refused_submission_is_a_wrong_request() -> None:
    client: Any = FakeClient(RuntimeError("Request failed with status code 400: bad"))
    with pytest.raises(RequestError, match="did not take the job afinar-ingest-"):
        run_job(client)
    client = FakeClient(AuthenticationError("Unauthorized: missing token"))
    with pytest.raises(RequestError, match="set RAY_AUTH_MODE=token"):
        run_job(client)


@pytest.mark.parametrize("where", [0, 1], ids=["while submitting", "while following"])
def test_interruption_stops_the_job_and_names_it(where: int) -> None:
    client: Any = FakeClient(*[requests.ConnectionError("reset")] * where, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match="is being stopped") as interrupt:
        run_job(client)
    assert client.stopped == [client.submitted[0]]
    assert client.submitted[0] in str(interrupt.value)


def test_interruption_without_an_answer_says_that_the_job_goes_on() -> None:
    client: Any = FakeClient(KeyboardInterrupt(), requests.ConnectionError("reset"))
    with pytest.raises(KeyboardInterrupt, match="goes on.*`ray job stop afinar-ingest-"):
        run_job(client)


@pytest.mark.parametrize(
    "error",
    [
        AuthenticationError("Unauthorized"),
        requests.HTTPError("500 Server Error"),
        ConnectionError("refused"),
        ValueError("no address"),
    ],
)
def test_dashboard_that_cannot_be_used_is_a_wrong_request(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(address: str | None) -> None:
        raise error

    monkeypatch.setattr(jobs_api, "_Client", fail)
    argv = ["submit", "--address", "http://head:8265", "--", "ingest", "s3://b/a", "s3://b/d"]
    assert main(argv) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("afinar: ")
