"""Walking a tree with many hands: listing waits for the store, not for the processor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from afinar.storage.store import ObjectInfo

Item = TypeVar("Item")
Page = list[ObjectInfo]

_PAGES_AHEAD = 64  # of up to a thousand objects each: what a slow consumer makes us hold; more than any `threads`


class ParallelLister(Generic[Item]):
    """Pieces of a tree (a folder, a prefix, some entries), each listed by one of several threads.

    `visit(item, walk)` yields pages of objects and hands further pieces to `walk.add`. The last piece found is
    taken first, so that few are pending. Pages come in no order; an error in a thread is raised by `pages`.
    """

    def __init__(
        self, visit: Callable[[Item, ParallelLister[Item]], Iterator[Page]], threads: int
    ) -> None:
        self._visit, self._threads = visit, threads
        self._pending: list[Item] = []
        self._open = 0  # pieces pending or being visited
        self._started = self._idle = 0
        self._stopped = False
        self._changed = threading.Condition()
        self._pages: queue.Queue[Page | BaseException | None] = queue.Queue(_PAGES_AHEAD)

    @property
    def has_idle_threads(self) -> bool:
        """Whether there is less to do than there are threads."""
        return len(self._pending) < self._threads

    def add(self, item: Item) -> None:
        """Have this piece visited too, by a new thread if all are busy: a small tree needs one."""
        with self._changed:
            self._pending.append(item)
            self._open += 1
            if self._idle >= len(self._pending):
                self._changed.notify()
            elif self._started < self._threads:
                self._started += 1
                threading.Thread(target=self._work, daemon=True).start()

    def pages(self, roots: Iterable[Item]) -> Iterator[Page]:
        """Visit the roots and all that is found below them. Of one use."""
        try:
            self._open += 1  # the roots' own, so that the first one's end is not taken for the end
            for root in roots:
                self.add(root)
            self._finish()
            while (page := self._pages.get()) is not None:
                if isinstance(page, BaseException):
                    raise page
                yield page
        finally:
            self._stop()

    def _work(self) -> None:
        try:
            while (item := self._next()) is not None:
                for page in self._visit(item, self):
                    if self._stopped:
                        return
                    self._pages.put(page)
                self._finish()
        except BaseException as error:  # noqa: BLE001  (raised again in the consumer's thread)
            self._pages.put(error)

    def _next(self) -> Item | None:
        with self._changed:
            self._idle += 1
            while not self._pending and self._open and not self._stopped:
                self._changed.wait()
            self._idle -= 1
            return None if self._stopped or not self._pending else self._pending.pop()

    def _finish(self) -> None:
        with self._changed:
            self._open -= 1
            if self._open:
                return
            self._changed.notify_all()
        self._pages.put(None)

    def _stop(self) -> None:
        """Let the threads go: those that wait for work, and those that wait to hand a page over."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        while not self._pages.empty():
            self._pages.get_nowait()
