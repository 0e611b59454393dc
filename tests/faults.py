"""An HTTP proxy that misbehaves on request, between a client and its S3 server.

It runs in a process of its own, so that it does not share the client's interpreter, and passes every byte
through unchanged (the Host header too, which signatures cover) but for the faults it was told. Tests use the
`fault_proxy` fixture (`pytest_plugins = ["tests.faults"]`); benchmarks `start(endpoint)`.

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
from urllib.parse import urlsplit

import pytest

_CONTROL = "/-/faults"
_CHUNK_BYTES = 1 << 18
_SECRET = "S"  # the test server's own: a header that is left out must leave the signature too

# Kinds that spoil the body of a successful reply; the others are answered without asking the server.
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
    """One way to misbehave. Of several that apply to a request the first does, and delays add to it.

    kind: "403" | "409" | "500" | "503" | "reset" (the connection) | "hang" (no answer for `delay_s`) | "truncate"
    (half the body) | "stall" (half the body, then silence for `delay_s`) | "flip" (a bit of the body) |
    "lost_reply" (the server is asked, then the connection reset) | "unconditional" (If-None-Match is left out) |
    "delay" (`delay_s` before the server is asked).
    match: regular expression on "METHOD /bucket/key?query".
    share: fraction of matching requests that suffer; times: at most so many; after: not the first so many.
    conditional: only requests that carry If-None-Match.
    """

    kind: str
    match: str = ""
    share: float = 1.0
    times: int | None = None
    after: int = 0
    delay_s: float = 60.0
    conditional: bool = False


class FaultProxy:
    """The running proxy as a test sees it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def set(self, *faults: Fault, seed: int = 0) -> None:
        """Misbehave like this from now on; counting starts anew."""
        self._ask(
            json.dumps({"seed": seed, "faults": [asdict(fault) for fault in faults]}).encode()
        )

    def requests(self, method: str | None = None) -> int:
        """How many requests came since `set`."""
        counted: dict[str, int] = self._ask()["requests"]
        return counted.get(method, 0) if method else sum(counted.values())

    def faults(self) -> dict[str, int]:
        """How often each kind of fault happened since `set`."""
        return dict(self._ask()["faults"])

    def _ask(self, body: bytes | None = None) -> dict[str, dict[str, int]]:
        with urllib.request.urlopen(self.endpoint + _CONTROL, data=body, timeout=10) as reply:
            answer: dict[str, dict[str, int]] = json.load(reply)
            return answer


@contextmanager
def start(server: str) -> Iterator[FaultProxy]:
    """Start a proxy in front of the S3 server at `server`; it ends with the block."""
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
    """One proxy for all tests."""
    with start(s3_server) as proxy:
        yield proxy


@pytest.fixture
def fault_proxy(fault_server: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy without faults yet, to which AWS_ENDPOINT_URL points for the length of the test."""
    fault_server.set()
    monkeypatch.setenv("AWS_ENDPOINT_URL", fault_server.endpoint)
    return fault_server


# ---- the process that is the proxy ----


@dataclass(slots=True)
class _Request:
    """A request's head as it came. `headers` has lower-case names; `lines` are the raw bytes."""

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
        """The head without If-None-Match, signed again by the rules of Signature Version 4."""
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


class _Rules:
    """Which fault a request meets, and the counts."""

    def __init__(self) -> None:
        self.set([], 0)

    def set(self, faults: list[Fault], seed: int) -> None:
        self._faults = [(fault, re.compile(fault.match)) for fault in faults]
        self._seen, self._done = [0] * len(faults), [0] * len(faults)
        self._random = random.Random(seed)
        self.requests: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()

    def meet(self, request: _Request) -> tuple[Fault | None, float]:
        """The fault that this request meets, and by how many seconds it is delayed."""
        self.requests[request.method] += 1
        met, delay_s, line = None, 0.0, f"{request.method} {request.target}"
        for number, (fault, pattern) in enumerate(self._faults):
            if (met and fault.kind != "delay") or not self._strikes(
                number, fault, pattern, request, line
            ):
                continue
            self._done[number] += 1
            self.faults[fault.kind] += 1
            if fault.kind == "delay":
                delay_s += fault.delay_s
            else:
                met = fault
        return met, delay_s

    def _strikes(
        self, number: int, fault: Fault, pattern: re.Pattern[str], request: _Request, line: str
    ) -> bool:
        if not pattern.search(line) or (
            fault.conditional and "if-none-match" not in request.headers
        ):
            return False
        self._seen[number] += 1
        if self._seen[number] <= fault.after or (
            fault.times is not None and self._done[number] >= fault.times
        ):
            return False
        return fault.share >= 1 or self._random.random() < fault.share


class _Proxy:
    """Serves client connections, each with a server connection of its own that is kept open."""

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
            pass  # either end went away
        finally:
            link.close()

    async def _control(self, request: _Request, link: _Link) -> None:
        body = await link.reader.readexactly(int(request.headers.get("content-length", 0)))
        if body:
            told = json.loads(body)
            self._rules.set([Fault(**fault) for fault in told["faults"]], told["seed"])
        answer = json.dumps(
            {"requests": self._rules.requests, "faults": self._rules.faults}
        ).encode()
        link.writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )

    async def _handle(self, request: _Request, link: _Link) -> bool:
        """Answer one request; False when the connection is not to be used again."""
        fault, delay_s = self._rules.meet(request)
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
        body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>as told</Message></Error>'.encode()
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def drop_request(self, request: _Request) -> None:
        await self._copy_request(request, None)

    async def forward(self, request: _Request, head: bytes) -> None:
        """Send the request on, over a new connection where the server has closed the old one."""
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
        """Pass the reply on, spoilt where asked."""
        assert self._server
        head, headers = await self.reply_head()
        length = int(headers.get("content-length", 0))
        self.writer.write(head)
        if method == "HEAD" or head[9:12] in {b"204", b"304"}:
            return True
        if "chunked" in headers.get("transfer-encoding", ""):
            await _copy_chunked(self._server[0], self.writer)
        elif fault and length and head[9:10] == b"2":
            return await self._spoil(fault, length)
        else:
            await _copy(self._server[0], self.writer, length)
        return headers.get("connection", "").lower() != "close"

    async def _spoil(self, fault: Fault, length: int) -> bool:
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
