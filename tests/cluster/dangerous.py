"""Executors whose workers die or hang at certain pictures."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from afinar.units.executor import Executor, RetryPolicy

KILLER, STOPPER = b"kills its worker", b"is decoded for ever"


def make_dangerous(make_work: Callable[[], Any]) -> Any:
    """Return the work of a process whose decoder dies or hangs at certain pictures."""
    work = make_work()
    patch_decoder()
    return work


def prepare_dangerous(prepare: Callable[[Any], Any], block: Any) -> Any:
    """Prepare a block in a process with the same decoder."""
    patch_decoder()
    return prepare(block)


def patch_decoder() -> None:
    """Make this process exit at pictures that end in KILLER, and hang at those in STOPPER."""
    for name in ("afinar.inference.picture_batches", "afinar.ingestion.worker"):
        module: Any = importlib.import_module(name)
        module.decode_into = _dangerous(module.decode_into)


def _dangerous(decode: Callable[..., Any]) -> Callable[..., Any]:
    def dangerous(data: bytes, *more: Any) -> Any:
        if data.endswith(KILLER):
            os._exit(1)
        if data.endswith(STOPPER):
            time.sleep(3600)
        return decode(data, *more)

    return dangerous


class DangerousExecutor:
    """Another executor, whose processes have that decoder."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(
        self,
        make_work: Callable[[], Any],
        tasks: Iterable[Any],
        policy: RetryPolicy[Any] | None = None,
    ) -> Iterator[Any]:
        if policy is not None and policy.preprocessing is not None:
            prepare = partial(prepare_dangerous, policy.preprocessing.prepare)
            preprocessing = replace(policy.preprocessing, prepare=prepare)
            policy = replace(policy, preprocessing=preprocessing)
        return self._executor.run(partial(make_dangerous, make_work), tasks, policy)
