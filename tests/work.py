"""Work functions for executors: results, errors, and units that kill or hang their worker."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from afinar.errors import ModelError, RequestError


def make_double(offset: int) -> Callable[[int], int]:
    return lambda number: 2 * number + offset


def make_broken() -> Callable[[int], int]:
    raise ModelError("golden samples have other logits here")


def make_dead() -> Callable[[int], int]:
    os._exit(1)


def refuse(number: int) -> int:
    raise RequestError(f"no {number}")


def crash(number: int) -> int:
    raise ZeroDivisionError(number)


class AwkwardError(Exception):
    """Cannot be unpickled: its constructor takes two arguments, its message is one."""

    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what} because of {why}")


def crash_awkwardly(number: int) -> int:
    raise AwkwardError(f"unit {number}", "its error")


def log_and_print(number: int) -> int:
    print("printed by the work")
    logging.getLogger("afinar.work").info(f"logged by unit {number}")
    return number


def die_once(flag: Path) -> str:
    if not flag.exists():
        flag.touch()
        os._exit(1)
    return flag.name


@dataclass(frozen=True)
class Attempt:
    """A unit that kills its worker, or hangs, in its first `fatal` attempts."""

    name: str
    fatal: int
    attempt: int = 0
    hangs: bool = False

    def next_attempt(self) -> Attempt:
        return replace(self, attempt=self.attempt + 1)


def make_fatal() -> Callable[[Attempt], tuple[str, int]]:
    def work(unit: Attempt) -> tuple[str, int]:
        if unit.attempt < unit.fatal:
            time.sleep(3600) if unit.hangs else os._exit(1)
        return unit.name, unit.attempt

    return work


def make_refuse() -> Callable[[int], int]:
    return refuse


def make_crash() -> Callable[[int], int]:
    return crash


def make_crash_awkwardly() -> Callable[[int], int]:
    return crash_awkwardly


def make_log_and_print() -> Callable[[int], int]:
    return log_and_print


def make_die_once() -> Callable[[Path], str]:
    return die_once
