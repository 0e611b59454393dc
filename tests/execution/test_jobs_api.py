"""Following of a job's log over connections that break."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from afinar.execution import jobs_api

LOG = ["first\n", "second\n", "third\n"]


class BreakingClient:
    """A client of the Jobs API that fails while the first two connections send the log."""

    def __init__(self) -> None:
        self.connections = 0
        self.failing_status = [True]

    def get_job_status(self, job: str) -> JobStatus:
        if self.connections == 1 and self.failing_status:
            self.failing_status.clear()
            raise ConnectionError("no answer")
        return JobStatus.SUCCEEDED if self.connections >= 2 else JobStatus.RUNNING

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        self.connections += 1
        for number, line in enumerate(LOG, 1):
            yield line
            if number == self.connections < 3:
                raise RuntimeError("the connection was closed")

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0)


def test_log_is_printed_once_over_connections_that_break(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_api, "_POLL_S", 0.0)
    client: Any = BreakingClient()
    assert jobs_api.follow_job(client, "job").exit_code == 0
    assert client.connections == 3
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert [line for line in lines if "following again" not in line] == LOG
    assert not client.failing_status


def test_api_that_stays_away_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "_POLL_S", 0.0)
    monkeypatch.setattr(jobs_api, "_RECONNECT_S", -1.0)
    client: Any = BreakingClient()
    with pytest.raises(RuntimeError, match="closed"):
        jobs_api.follow_job(client, "job")
