"""A bucket behind a faulty server and network: right bytes or a clear error, in bounded time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from afinar.errors import ForbiddenError, IntegrityError, NotFoundError, RequestError, StorageError
from afinar.storage import s3, s3_clients
from afinar.storage.objects import get_object, put_object
from afinar.storage.open import open_store
from afinar.storage.store import Store
from afinar.storage.versions import new_owner, probe_conditional_put, publish
from tests.faults import Fault, FaultProxy

BODY = bytes(range(256)) * 400


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten timeouts and retries, so that clients fail within seconds."""
    monkeypatch.setattr(s3_clients, "STALL_S", 0.5)
    monkeypatch.setattr(s3_clients, "WRITE_S", 1.0)
    monkeypatch.setattr(s3_clients, "RETRY_S", 2.0)
    monkeypatch.setattr(s3_clients, "READ_ATTEMPTS", 4)
    monkeypatch.setattr(s3_clients, "WRITE_ATTEMPTS", 3)
    s3_clients._clients.cache_clear()
    yield
    s3_clients._clients.cache_clear()


@pytest.fixture
def store(bucket: str, fault_proxy: FaultProxy, impatient: None) -> Store:
    return open_store(f"{bucket}/store")


@pytest.mark.parametrize("kind", ["500", "503", "reset", "truncate", "stall", "hang"])
def test_get_that_fails_twice_is_retried(store: Store, fault_proxy: FaultProxy, kind: str) -> None:
    store.put_if_absent("a", BODY)
    (listed,) = store.walk()
    fault_proxy.set(Fault(kind, match="^GET .*/a", times=2, delay_s=5))
    assert store.get("a", listed.etag) == BODY
    assert (fault_proxy.requests(), fault_proxy.faults()) == (3, {kind: 2})


@pytest.mark.parametrize("kind", ["500", "truncate", "stall"])
def test_get_that_always_fails_ends_with_short_error(
    store: Store, fault_proxy: FaultProxy, kind: str
) -> None:
    store.put_if_absent("a", BODY)
    fault_proxy.set(Fault(kind, delay_s=5))

    def read(_: int) -> str:
        with pytest.raises(StorageError) as caught:
            store.get("a")
        return str(caught.value)

    with ThreadPoolExecutor(16) as pool:
        messages = list(pool.map(read, range(16)))
    assert fault_proxy.requests() <= 16 * s3_clients.READ_ATTEMPTS
    assert all(len(line) < 600 and store.uri("a") in line for line in messages)


def test_unreachable_store_ends_every_call(store: Store, fault_proxy: FaultProxy) -> None:
    store.put_if_absent("a", BODY)
    fault_proxy.set(Fault("reset"))
    started = time.monotonic()
    for call in (
        lambda: list(store.walk()),
        lambda: store.put_if_absent("b", BODY),
        lambda: store.delete("a"),
    ):
        with pytest.raises(StorageError):
            call()
    with pytest.raises(RequestError, match="cannot reach"):
        store.require_target()
    # Twice the attempts: aiohttp itself tries once more if a kept-alive connection breaks.
    assert fault_proxy.requests() <= 2 * 4 * s3_clients.WRITE_ATTEMPTS
    assert time.monotonic() - started < 40


def test_put_to_silent_server_ends_at_deadline(
    store: Store, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_if_absent("a", BODY)
    fault_proxy.set(Fault("hang", delay_s=30))
    monkeypatch.setattr(s3_clients, "DEADLINE_S", 0.2)
    with pytest.raises(StorageError, match="no answer in time"):
        store.put_if_absent("c", BODY)
    assert fault_proxy.requests() <= 2 * s3_clients.WRITE_ATTEMPTS + 1


@pytest.mark.parametrize("kind", ["500", "reset", "truncate"])
def test_listing_with_faults_is_complete(store: Store, fault_proxy: FaultProxy, kind: str) -> None:
    names = {f"{folder}/{number}" for folder in "abc" for number in range(3)}
    for name in names:
        store.put_if_absent(name, b"x")
    fault_proxy.set(Fault(kind, match="list-type=2", times=2))
    assert {info.name for info in store.walk()} == names
    assert fault_proxy.faults() == {kind: 2}


@pytest.mark.parametrize("status", ["404", "403"])
def test_permanent_error_is_not_retried(store: Store, fault_proxy: FaultProxy, status: str) -> None:
    store.put_if_absent("a", BODY)
    fault_proxy.set(Fault("403", match="^GET .*/a"))
    expected, name = (ForbiddenError, "a") if status == "403" else (NotFoundError, "b")
    with pytest.raises(expected):
        store.get(name)
    assert fault_proxy.requests() == 1


def test_wrong_secret_is_forbidden_and_not_printed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_if_absent("a", BODY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(ForbiddenError) as caught:
        open_store(store.root).get("a")
    assert "hunter2" not in str(caught.value)


def test_credentials_and_endpoint_come_from_a_profile(
    store: Store, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store.put_if_absent("a", BODY)
    (tmp_path / "config").write_text(
        f"[profile archive]\nregion = eu-north-1\nendpoint_url = {fault_proxy.endpoint}\n"
        "aws_access_key_id = K\naws_secret_access_key = S\n"
    )
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match="credentials"):
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        open_store(store.root).get("a")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "archive")
    assert open_store(store.root).get("a") == BODY
    assert fault_proxy.requests("GET") == 1


def test_flipped_bit_is_detected_and_read_again(store: Store, fault_proxy: FaultProxy) -> None:
    store.put_if_absent("a", BODY)
    (listed,) = store.walk()
    fault_proxy.set(Fault("flip", times=1))
    assert store.get("a", listed.etag) == BODY
    assert fault_proxy.requests() == 2


def test_committed_object_is_read_twice_before_integrity_error(
    store: Store, fault_proxy: FaultProxy
) -> None:
    ref = put_object(store, "shards/{hash}", memoryview(BODY), 1)
    fault_proxy.set(Fault("flip", times=1))
    assert get_object(store, ref) == BODY
    fault_proxy.set(Fault("flip"))
    with pytest.raises(IntegrityError):
        get_object(store, ref)
    assert fault_proxy.requests() == 2


def test_publish_with_lost_reply_publishes_once(store: Store, fault_proxy: FaultProxy) -> None:
    fault_proxy.set(Fault("lost_reply", match="^PUT .*/versions/", times=1))
    assert publish(store, "versions", 1, {"n": 1}, new_owner())
    assert fault_proxy.requests("PUT") == 2
    assert [info.name for info in store.walk("versions")] == ["versions/00000001.json"]


def test_probe_with_lost_reply_accepts_store(store: Store, fault_proxy: FaultProxy) -> None:
    fault_proxy.set(Fault("lost_reply", match="^PUT", times=1))
    probe_conditional_put(store)
    fault_proxy.set(Fault("lost_reply", match="^PUT", times=1, after=1))
    probe_conditional_put(store)


def test_probe_refuses_store_that_ignores_if_none_match(
    store: Store, fault_proxy: FaultProxy
) -> None:
    fault_proxy.set(Fault("unconditional", conditional=True))
    with pytest.raises(RequestError, match="If-None-Match"):
        probe_conditional_put(store)
    fault_proxy.set(
        Fault("lost_reply", match="^PUT", times=1), Fault("unconditional", conditional=True)
    )
    with pytest.raises(RequestError, match="If-None-Match"):
        probe_conditional_put(store)


def test_put_with_conflicts_is_retried_a_bounded_number_of_times(
    store: Store, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault_proxy.set(Fault("409", conditional=True, times=3))
    assert store.put_if_absent("a", BODY)
    fault_proxy.set(Fault("409", conditional=True))
    monkeypatch.setattr(s3, "_PUT_ATTEMPTS", 3)
    with pytest.raises(StorageError, match="409"):
        store.put_if_absent("b", BODY)
    assert fault_proxy.requests() == 3
    fault_proxy.set()
    assert [info.name for info in store.walk()] == ["a"]


def test_concurrent_readers_on_faulty_network_get_right_bytes(
    bucket: str, fault_proxy: FaultProxy, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of the replies fail, so four failures in a row happen to one of the objects.
    monkeypatch.setattr(s3_clients, "READ_ATTEMPTS", 10)
    store = open_store(f"{bucket}/store")
    bodies = {f"{number}": bytes([number]) * 50_000 for number in range(100)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda item: store.put_if_absent(*item), bodies.items()))
        listed = {info.name: info.etag for info in store.walk()}
        kinds = ("500", "503", "reset", "truncate", "flip")
        fault_proxy.set(*(Fault(kind, share=0.05) for kind in kinds))
        read = pool.map(lambda name: store.get(name, listed[name]), listed)
        assert dict(zip(listed, read, strict=True)) == bodies
    assert len(fault_proxy.faults()) == len(kinds)
    assert fault_proxy.requests() <= 180
