"""Wrong settings of S3: one sentence, exit code 2, and nothing secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from afinar.errors import RequestError
from afinar.storage.open import open_store


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_ENDPOINT_URL", "ftp://store x", "Invalid endpoint: ftp://store x"),
        ("AWS_ENDPOINT_URL", "store:9000", "Invalid endpoint"),
        ("AWS_ENDPOINT_URL", "http://", "Invalid endpoint"),
        ("AWS_ENDPOINT_URL", "http://[::1", "Invalid IPv6 URL"),
        ("AWS_ENDPOINT_URL", "http://store:99999", "Port out of range"),
        ("AWS_ENDPOINT_URL_S3", "ftp://store", "Invalid endpoint|Unsupported|ftp"),
        ("AWS_ENDPOINT_URL", "http://me:hidden@store:9000", "set AWS_ACCESS_KEY_ID and"),
        ("AWS_DEFAULT_REGION", "no such region", "no such region"),
        ("AWS_PROFILE", "nobody", "nobody"),
        ("AWS_CA_BUNDLE", "/nowhere/ca.pem", "certificates /nowhere/ca.pem cannot be read"),
    ],
)
def test_wrong_setting_is_refused_before_a_request(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    store = open_store("s3://bucket/dataset")
    with pytest.raises(RequestError, match=message) as raised:
        store.get("object")
    assert "hidden" not in str(raised.value)
    assert "secret-key" not in str(raised.value)
    if name != "AWS_CA_BUNDLE":
        with pytest.raises(RequestError, match=message):
            store.require_target()


@pytest.mark.parametrize("name", ["Bad Bucket", "b!", "u:p@host", "b" * 256])
def test_name_that_no_bucket_can_have_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match="is no name of a bucket"):
        open_store(f"s3://{name}/dataset")
