"""A TCP proxy in front of an S3 server, in another process, that counts GETs and delays them.

It forwards bytes unchanged, the Host header too, so that signatures stay valid. Clients of HTTP/1.1
send a request only after the answer to the one before, so a GET is a piece of data that begins with
these letters.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.servers import free_port

_PICTURE = re.compile(rb"GET /\S+\.jpg[ ?]")
_PIECE_BYTES = 2**18


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its address and process, the delay of each GET, and numbers of GETs."""

    endpoint: str
    pid: int
    delay_s: Any
    gets: Any
    picture_gets: Any

    def reset(self, delay_s: float = 0.0) -> None:
        """Reset the counters and set the delay."""
        self.delay_s.value, self.gets.value, self.picture_gets.value = delay_s, 0, 0


@contextmanager
def proxy(server_port: int) -> Iterator[Proxy]:
    """Run a proxy from a free port to the port of the server."""
    context = multiprocessing.get_context("spawn")
    port, ready = free_port(), context.Event()
    delay_s, gets, picture_gets = (
        context.Value("d", 0.0),
        context.Value("q", 0),
        context.Value("q", 0),
    )
    arguments = (port, server_port, delay_s, gets, picture_gets, ready)
    process = context.Process(target=_serve, args=arguments, daemon=True)
    process.start()
    try:
        if not ready.wait(30):
            raise RuntimeError("the proxy did not start")
        assert process.pid is not None
        yield Proxy(f"http://127.0.0.1:{port}", process.pid, delay_s, gets, picture_gets)
    finally:
        process.kill()
        process.join()


def _serve(
    port: int, server_port: int, delay_s: Any, gets: Any, picture_gets: Any, ready: Any
) -> None:
    async def hold_back(piece: bytes) -> None:
        if piece.startswith(b"GET "):
            gets.value += 1
            picture_gets.value += bool(_PICTURE.match(piece))
            if delay_s.value:
                await asyncio.sleep(delay_s.value)

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: bool
    ) -> None:
        try:
            while piece := await reader.read(_PIECE_BYTES):
                if requests:
                    await hold_back(piece)
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass  # one end closed its connection; the other one is closed below
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, downstream = await asyncio.open_connection("127.0.0.1", server_port)
        await asyncio.gather(pump(reader, downstream, True), pump(upstream, writer, False))

    async def main() -> None:
        server = await asyncio.start_server(relay, "127.0.0.1", port, limit=_PIECE_BYTES)
        ready.set()
        await server.serve_forever()

    asyncio.run(main())
