"""Objects by URI in several folders and buckets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from afinar.storage.multi_store import MultiStore
from afinar.storage.open import open_store, split_uri


def test_uri_is_split_into_root_and_name() -> None:
    assert split_uri("s3://bucket/a/b.jpg") == ("s3://bucket", "a/b.jpg")
    assert split_uri("/data/a/b.jpg") == ("/data/a", "b.jpg")
    assert split_uri("/b.jpg") == ("/", "b.jpg")


def test_concurrent_reads_of_several_roots_return_their_objects(location: str) -> None:
    uris = [f"{location}/{folder}/{number}" for folder in "abc" for number in range(10)]
    for uri in uris:
        open_store(location).put_if_absent(uri.removeprefix(f"{location}/"), uri.encode())
    store = MultiStore(remote=location.startswith("s3://"))
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(store.get, uris)) == [uri.encode() for uri in uris]
    assert store.exists()
    info = store.stat(uris[0])
    assert (info.name, info.uri, info.size) == (uris[0], uris[0], len(uris[0]))
