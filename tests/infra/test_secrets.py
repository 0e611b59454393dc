"""Checks that no file of infra/ contains a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.infra.files import LAUNCHER, TEXTS, load

SECRETS = re.compile(
    r"""\b(AKIA|ASIA)[0-9A-Z]{16}\b                             # AWS key ids
      | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY                       # keys of any kind
      | \bgh[pousr]_[A-Za-z0-9]{30,}                            # tokens of code hosts
      | ://[^/\s:@]+:[^/\s:@]+@                                 # name and password in an address
      | (key|secret|token|password|passwd)\w*["']?\s*[:=]\s*["']?[A-Za-z0-9+/_-]{16,}
    """,
    re.VERBOSE | re.IGNORECASE,
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_file_contains_no_secret(path: Path) -> None:
    assert not (match := SECRETS.search(path.read_text(encoding="utf-8"))), match


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "url: https://me:" + "hunter2@example.org/",
        "AWS_SECRET_ACCESS_KEY=" + "a" * 40,
        'auth_token: "' + "0123456789abcdef" * 2 + '"',
    ],
)
def test_pattern_matches_a_secret(text: str) -> None:
    assert SECRETS.search(text)


def test_launcher_uses_instance_profiles_and_no_keys() -> None:
    launcher = load(LAUNCHER)
    for name, kind in launcher["available_node_types"].items():
        assert kind["node_config"]["IamInstanceProfile"]["Arn"].startswith(
            "arn:aws:iam::000000000000:"
        ), name
    mounted = set(launcher["file_mounts"].values())
    assert mounted == {"~/.ray/auth_token"}, "no other file of the user is copied"
    assert "ssh_private_key" not in launcher["auth"]
