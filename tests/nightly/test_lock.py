"""The lock of nightly retraining, in a folder and on a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from afinar.errors import RecordError
from afinar.nightly.lock import FOLDER, Lease, LeaseLostError, LockHeldError, acquire, hold_lock
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import latest, versions

LONG_S = 600.0
EXPIRED_S = -60.0  # a lease that ended before the tolerance for clocks that differ

HOLDER = """
import sys, time
from afinar.nightly.lock import hold_lock
from afinar.storage.open import open_store
with hold_lock(open_store(sys.argv[1]), float(sys.argv[2])) as lease:
    print("held", flush=True)
    sys.stdin.readline()
    lease.require()
    print("published", flush=True)
"""


@pytest.fixture
def store(location: str) -> Store:
    return open_store(location)


def test_the_second_of_two_nights_is_refused_until_the_first_has_ended(store: Store) -> None:
    with hold_lock(store, LONG_S) as lease:
        lease.require()
        with pytest.raises(LockHeldError, match="another night holds the lock: .*@") as refusal:
            acquire(store, LONG_S)
        assert refusal.value.exit_code == 3

    with hold_lock(store, LONG_S) as lease:
        assert not lease.takeover


def test_one_of_many_nights_at_once_gets_the_lock(store: Store) -> None:
    results: list[Lease | LockHeldError] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait()
        try:
            results.append(acquire(store, LONG_S))
        except LockHeldError as error:
            results.append(error)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [type(result) for result in results].count(Lease) == 1
    assert len(results) == 8


def test_an_expired_lease_is_taken_over_and_its_holder_publishes_nothing(store: Store) -> None:
    dead = acquire(store, EXPIRED_S)
    lease = acquire(store, LONG_S)

    assert lease.takeover
    lease.require()
    for action in (dead.require, dead.renew):
        with pytest.raises(LeaseLostError, match="suspended for longer than its lease"):
            action()
    dead.release()
    lease.require()


def test_a_lease_that_expired_and_was_not_taken_over_goes_on(store: Store) -> None:
    lease = acquire(store, EXPIRED_S)

    lease.require()
    lease.renew()
    lease.require()


def test_a_holder_renews_its_lease_while_it_works(store: Store) -> None:
    with hold_lock(store, 0.3) as lease:
        deadline = time.monotonic() + 30
        while len(versions(store, FOLDER)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        lease.require()

    assert len(versions(store, FOLDER)) >= 5
    current = latest(store, FOLDER)
    assert current is not None
    assert current[1]["released"]


def test_old_records_are_deleted(store: Store) -> None:
    for _ in range(15):
        with hold_lock(store, LONG_S):
            pass

    assert len(versions(store, FOLDER)) == 20


def test_a_suspended_holder_publishes_nothing_after_a_takeover(store: Store) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, store.root, "1.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        holder.send_signal(signal.SIGSTOP)
        lease = _take_over(store)
        holder.send_signal(signal.SIGCONT)
        output, errors = holder.communicate("go on\n", timeout=60)
    finally:
        holder.kill()

    assert lease.takeover
    assert "published" not in output
    assert "LeaseLostError" in errors
    lease.require()


def _take_over(store: Store) -> Lease:
    """Acquire the lock as soon as the lease of the suspended holder has expired."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return acquire(store, LONG_S)
        except LockHeldError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


def test_a_forged_record_is_refused(store: Store) -> None:
    record = {"owner": "x", "actor": "y", "acquired": "2026-11-26", "expires": "soon"}
    store.put_if_absent(f"{FOLDER}/00000001.json", json.dumps(record).encode())

    with pytest.raises(RecordError, match="acquired|expires"):
        acquire(store, LONG_S)
