"""Hooks: tell a web address or a command how a night ended. They never decide its exit code.

The body is a JSON object with the night's name, outcome, reasons, champion, candidate and the time.
If AFINAR_WEBHOOK_SECRET is set, the header `X-Afinar-Signature: sha256=<hex>` has the HMAC-SHA256
of the body, so that the receiver can check who sent it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from afinar.config.nightly import HookRules

logger = logging.getLogger(__name__)

SECRET: Final = "AFINAR_WEBHOOK_SECRET"

_TRIES: Final = 3
_TIMEOUT_S: Final = 10
_COMMAND_TIMEOUT_S: Final = 300


def tell(
    rules: HookRules, message: dict[str, Any], pause: Callable[[float], None] = time.sleep
) -> None:
    """Send a message to the hooks if its outcome is one that they are told about.

    A hook that fails is logged. `pause` waits between two tries of the web address.
    """
    if message["outcome"] not in rules.on:
        return
    body = json.dumps({**message, "time": datetime.now(UTC).isoformat(timespec="seconds")}).encode()
    if rules.url:
        _post(rules.url, body, pause)
    if rules.command:
        _run(rules.command, body)


def sign(body: bytes, secret: str) -> str:
    """Return the value of the header X-Afinar-Signature."""
    return f"sha256={hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}"


def _post(url: str, body: bytes, pause: Callable[[float], None]) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "afinar"}
    secret = os.environ.get(SECRET)
    if secret:
        headers["X-Afinar-Signature"] = sign(body, secret)
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    for attempt in range(1, _TRIES + 1):
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S):
                return
        except (OSError, ValueError) as error:  # URLError and HTTPError are OSErrors
            # The address may hold a token: only the kind of failure is logged.
            reason = getattr(error, "code", None) or type(error).__name__
            logger.warning(f"the webhook failed ({reason}), try {attempt} of {_TRIES}")
        if attempt < _TRIES:
            pause(2.0**attempt)


def _run(command: str, body: bytes) -> None:
    try:
        result = subprocess.run(
            shlex.split(command), input=body, timeout=_COMMAND_TIMEOUT_S, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        logger.warning(f"the hook's command failed: {error}")
        return
    if result.returncode:
        logger.warning(f"the hook's command ended with {result.returncode}")
