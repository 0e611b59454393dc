"""An HTTP proxy that injects faults between a client and its S3 server.

It runs in a separate process, so that it does not share the client's interpreter. Apart from the
faults it passes every byte through unchanged, the Host header too, which signatures cover. Tests
use the fixture `fault_proxy`; benchmarks use `start(endpoint)`.

    proxy.set(Fault("503", share=0.05), Fault("delay", delay_s=0.03, match="^GET"))
    proxy.requests(), proxy.faults()
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

_CONTROL = "/-/faults"
_CHUNK_BYTES = 1 << 18
_SECRET = "S"  # of the test server: a request without one of its headers is signed again

# Faults in the body of a successful reply; the status kinds are answered without the server.
_BODY_KINDS = {"truncate", "stall", "flip"}
_STATUS_KINDS = {
    "400": ("Bad Request", "BadDigest"),
    "403": ("Forbidden", "AccessDenied"),
    "409": ("Conflict", "ConditionalRequestConflict"),
    "500": ("Internal Server Error", "InternalError"),
    "503": ("Service Unavailable", "SlowDown"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. If several match a request, the first is applied; delays are applied in addition.

    kind: "400" | "403" | "409" | "500" | "503" (a status), "reset" (of the connection),
      "hang" (no answer for `delay_s`), "truncate" (half the body), "stall" (half the body, then
      silence for `delay_s`), "flip" (one bit of the body), "lost_reply" (the server is asked, then
      the connection is reset), "unconditional" (If-None-Match is left out), "delay" (`delay_s`
      before the server is asked).
    match: regular expression on "METHOD /bucket/key?query".
    share: fraction of the matching requests that get the fault.
    times: number of requests that get it at most. after: number of requests before the first.
    conditional: only requests with If-None-Match.
    """

    kind: str
    match: str = ""
    share: float = 1.0
    times: int | None = None
    after: int = 0
    delay_s: float = 60.0
    conditional: bool = False


class FaultProxy:
    """Control of a running proxy."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def set(self, *faults: Fault, seed: int = 0) -> None:
        """Replace the faults and reset the counters."""
        self._ask(
            json.dumps({"seed": seed, "faults": [asdict(fault) for fault in faults]}).encode()
        )

    def requests(self, method: str | None = None) -> int:
        """Return the number of requests since `set`."""
        counts: dict[str, int] = self._ask()["requests"]
        return counts.get(method, 0) if method else sum(counts.values())

    def faults(self) -> dict[str, int]:
        """Return the number of faults since `set`, by kind."""
        return dict(self._ask()["faults"])

    def _ask(self, body: bytes | None = None) -> dict[str, dict[str, int]]:
        with urllib.request.urlopen(self.endpoint + _CONTROL, data=body, timeout=10) as reply:
            answer: dict[str, dict[str, int]] = json.load(reply)
            return answer


@contextmanager
def start(server: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of the S3 server at `server` until the end of the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, server], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield FaultProxy(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture(scope="session")
def fault_server(s3_server: str) -> Iterator[FaultProxy]:
    """Run one proxy for all tests."""
    with start(s3_server) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(fault_server: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """Return the proxy without faults; AWS_ENDPOINT_URL points to it during the test."""
    fault_server.set()
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_server.endpoint)
    return fault_server


# ---- the process of the proxy ----


@dataclass(slots=True)
class _Request:
    """Head of a request. `headers` has lower-case names; `lines` are the raw bytes."""

    method: str
    target: str
    lines: list[bytes]
    headers: dict[str, str]

    @classmethod
    def parse(cls, head: bytes) -> _Request:
        lines = head[:-4].split(b"\r\n")
        method, target, _ = lines[0].decode("latin-1").split(" ", 2)
        return cls(method, target, lines, _headers(lines))

    def encoded(self) -> bytes:
        return b"\r\n".join(self.lines) + b"\r\n\r\n"

    def without_condition(self) -> bytes:
        """Return the head without If-None-Match, signed again with Signature Version 4."""
        scheme, rest = self.headers["authorization"].split(" ", 1)
        fields = dict(part.strip().split("=", 1) for part in rest.split(","))
        signed = [name for name in fields["SignedHeaders"].split(";") if name != "if-none-match"]
        path, _, query = self.target.partition("?")
        canonical = [self.method, path, "&".join(sorted(query.split("&"))) if query else ""]
        canonical += [f"{name}:{' '.join(self.headers[name].split())}" for name in signed]
        canonical += ["", ";".join(signed), self.headers["x-amz-content-sha256"]]

        digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
        scope = fields["Credential"].split("/", 1)[1]
        key = f"AWS4{_SECRET}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = "\n".join([scheme, self.headers["x-amz-date"], scope, digest])
        signature = hmac.new(key, text.encode(), "sha256").hexdigest()

        authorization = (
            f"Authorization: {scheme} Credential={fields['Credential']}, "
            f"SignedHeaders={';'.join(signed)}, Signature={signature}"
        )
        kept = [
            line
            for line in self.lines
            if not line.lower().startswith((b"authorization:", b"if-none-match:"))
        ]
        return b"\r\n".join([*kept, authorization.encode()]) + b"\r\n\r\n"


def _headers(lines: list[bytes]) -> dict[str, str]:
    pairs = (line.decode("latin-1").split(":", 1) for line in lines[1:])
    return {name.strip().lower(): value.strip() for name, value in pairs}


@dataclass(slots=True)
class _Rule:
    """A fault with its counters."""

    fault: Fault
    pattern: re.Pattern[str]
    matched: int = 0
    applied: int = 0

    def applies_to(self, request: _Request, rng: random.Random) -> bool:
        if not self.pattern.search(f"{request.method} {request.target}"):
            return False
        if self.fault.conditional and "if-none-match" not in request.headers:
            return False

        self.matched += 1
        if self.matched <= self.fault.after:
            return False
        if self.fault.times is not None and self.applied >= self.fault.times:
            return False
        return self.fault.share >= 1 or rng.random() < self.fault.share


class _Injection(NamedTuple):
    """The fault to inject into one request, if any, after a delay."""

    fault: Fault | None
    delay_s: float


class _Rules:
    """All faults of the proxy, and counters of requests and faults."""

    def __init__(self) -> None:
        self.set([], 0)

    def set(self, faults: list[Fault], seed: int) -> None:
        self._rules = [_Rule(fault, re.compile(fault.match)) for fault in faults]
        self._random = random.Random(seed)
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def apply(self, request: _Request) -> _Injection:
        self.requests[request.method] += 1
        injected: Fault | None = None
        delay_s = 0.0
        for rule in self._rules:
            is_delay = rule.fault.kind == "delay"
            if (injected and not is_delay) or not rule.applies_to(request, self._random):
                continue
            rule.applied += 1
            self.faults[rule.fault.kind] += 1
            if is_delay:
                delay_s += rule.fault.delay_s
            else:
                injected = rule.fault
        return _Injection(injected, delay_s)


class _Proxy:
    """Server of client connections. Each has its own connection to the S3 server, kept open."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._address = (parts.hostname, parts.port)
        self._rules = _Rules()

    async def serve(self) -> None:
        server = await asyncio.start_server(
            self._connection, "127.0.0.1", 0, limit=_CHUNK_BYTES, backlog=512
        )
        print(server.sockets[0].getsockname()[1], flush=True)
        async with server:
            await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(reader, writer, self._address)
        try:
            while True:
                request = _Request.parse(await reader.readuntil(b"\r\n\r\n"))
                if request.target == _CONTROL:
                    await self._control(request, link)
                elif not await self._handle(request, link):
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client or the server closed the connection
        finally:
            link.close()

    async def _control(self, request: _Request, link: _Link) -> None:
        body = await link.reader.readexactly(int(request.headers.get("content-length", 0)))
        if body:
            rules = json.loads(body)
            self._rules.set([Fault(**fault) for fault in rules["faults"]], rules["seed"])
        answer = json.dumps(
            {"requests": self._rules.requests, "faults": self._rules.faults}
        ).encode()
        link.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )

    async def _handle(self, request: _Request, link: _Link) -> bool:
        """Answer one request. Return False if the connection must not be used again."""
        fault, delay_s = self._rules.apply(request)
        kind = fault.kind if fault else ""
        if delay_s:
            await asyncio.sleep(delay_s)
        if kind == "reset":
            link.writer.transport.abort()
            return False
        if fault and kind == "hang":
            await asyncio.sleep(fault.delay_s)
            return False
        if kind in _STATUS_KINDS:
            await link.drop_request(request)
            link.answer(kind)
            return True
        await link.forward(
            request, request.without_condition() if kind == "unconditional" else request.encoded()
        )
        if kind == "lost_reply":
            await link.reply_head()
            link.writer.transport.abort()
            return False
        return await link.reply(request.method, fault if kind in _BODY_KINDS else None)


class _Link:
    """One client connection and its server connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        address: tuple[str | None, int | None],
    ) -> None:
        self.reader, self.writer, self._address = reader, writer, address
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        self.writer.close()
        if self._server:
            self._server[1].close()

    def answer(self, status: str) -> None:
        reason, code = _STATUS_KINDS[status]
        error = f"<Error><Code>{code}</Code><Message>injected</Message></Error>"
        body = f'<?xml version="1.0"?>{error}'.encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self.writer.write(head.encode() + body)

    async def drop_request(self, request: _Request) -> None:
        await self._copy_request(request, None)

    async def forward(self, request: _Request, head: bytes) -> None:
        """Forward the request, over a new connection if the server closed the old one."""
        if self._server is None or self._server[0].at_eof() or self._server[1].is_closing():
            self._server = await asyncio.open_connection(*self._address, limit=_CHUNK_BYTES)
        self._server[1].write(head)
        await self._copy_request(request, self._server[1])

    async def _copy_request(self, request: _Request, sink: asyncio.StreamWriter | None) -> None:
        if "expect" in request.headers:
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in request.headers.get("transfer-encoding", ""):
            await _copy_chunked(self.reader, sink)
        else:
            await _copy(self.reader, sink, int(request.headers.get("content-length", 0)))

    async def reply_head(self) -> tuple[bytes, dict[str, str]]:
        assert self._server
        while True:
            head = await self._server[0].readuntil(b"\r\n\r\n")
            if head[9:10] != b"1":  # 100 Continue was answered already
                return head, _headers(head[:-4].split(b"\r\n"))

    async def reply(self, method: str, fault: Fault | None) -> bool:
        """Forward the reply, with the fault if one is given."""
        assert self._server
        head, headers = await self.reply_head()
        length = int(headers.get("content-length", 0))
        self.writer.write(head)
        if method == "HEAD" or head[9:12] in {b"204", b"304"}:
            return True
        if "chunked" in headers.get("transfer-encoding", ""):
            await _copy_chunked(self._server[0], self.writer)
        elif fault and length and head[9:10] == b"2":
            return await self._damage(fault, length)
        else:
            await _copy(self._server[0], self.writer, length)
        return headers.get("connection", "").lower() != "close"

    async def _damage(self, fault: Fault, length: int) -> bool:
        assert self._server
        half = length // 2
        await _copy(self._server[0], self.writer, half)
        if fault.kind == "flip":
            byte = await self._server[0].readexactly(1)
            self.writer.write(bytes([byte[0] ^ 1]))
            await _copy(self._server[0], self.writer, length - half - 1)
            return True
        await self.writer.drain()
        if fault.kind == "stall":
            await asyncio.sleep(fault.delay_s)
        return False


async def _copy(
    source: asyncio.StreamReader, sink: asyncio.StreamWriter | None, length: int
) -> None:
    while length:
        data = await source.read(min(length, _CHUNK_BYTES))
        if not data:
            raise ConnectionError("the body ended early")
        length -= len(data)
        if sink:
            sink.write(data)
            await sink.drain()


async def _copy_chunked(source: asyncio.StreamReader, sink: asyncio.StreamWriter | None) -> None:
    while True:
        line = await source.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        if sink:
            sink.write(line)
        if size == 0:
            break
        await _copy(source, sink, size + 2)
    while True:  # trailers, up to the empty line
        line = await source.readuntil(b"\r\n")
        if sink:
            sink.write(line)
        if line == b"\r\n":
            return


if __name__ == "__main__":
    asyncio.run(_Proxy(sys.argv[1]).serve())
