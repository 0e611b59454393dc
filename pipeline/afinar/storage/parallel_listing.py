"""Listing of a tree with several threads: listing waits for the store, not for the processor.

A tree is cut into items (a folder, a key prefix, some files of a folder). Listing one item yields
pages of objects and adds further items. Example with two threads and a root that holds the folders
`a` and `b`:

    thread 1 lists the root: adds `a`           thread 2 starts and lists `a`
    thread 1 adds `b`, yields the root's page   both threads exist: `b` is pending
    thread 1 lists `b`                          thread 2 finishes `a` and waits for items
    thread 1 finishes `b`: no item is pending or being listed, so both threads end

The newest pending item is taken first: depth first, so few items are pending. A tree without
folders needs one thread.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Generic, TypeVar

from afinar.storage.store import ObjectInfo

Item = TypeVar("Item")
Page = list[ObjectInfo]

# Pages of up to a thousand objects that are listed and not yet consumed. It must be more than any
# number of threads, so that threads which are stopped while they put a page can finish.
_MAX_PAGES: Final = 64


class ParallelLister(Generic[Item]):
    """Lister of one tree with at most `threads` threads, for one use.

    `list_item(item, lister)` yields the pages of an item and calls `lister.add` for the items below
    it. `pages` returns pages in no particular order and raises an error of any thread.
    """

    def __init__(
        self, list_item: Callable[[Item, ParallelLister[Item]], Iterator[Page]], threads: int
    ) -> None:
        self._list_item, self._threads = list_item, threads
        self._pending: list[Item] = []
        self._unfinished = 0  # items that are pending or being listed
        self._started = self._idle = 0  # threads
        self._stopped = False
        self._changed = threading.Condition()
        self._pages: queue.Queue[Page | BaseException | None] = queue.Queue(_MAX_PAGES)

    @property
    def has_idle_threads(self) -> bool:
        """Return True if fewer items are pending than there are threads."""
        return len(self._pending) < self._threads

    def add(self, item: Item) -> None:
        """Add an item. A new thread is started for it if no thread is idle."""
        with self._changed:
            self._pending.append(item)
            self._unfinished += 1
            if self._idle >= len(self._pending):
                self._changed.notify()
            elif self._started < self._threads:
                self._started += 1
                threading.Thread(target=self._work, daemon=True).start()

    def pages(self, roots: Iterable[Item]) -> Iterator[Page]:
        """Yield the pages of the roots and of all items below them."""
        try:
            # Counted until all roots are added: else the end of the first root could be taken for
            # the end of all.
            self._unfinished += 1
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
                for page in self._list_item(item, self):
                    if self._stopped:
                        return
                    self._pages.put(page)
                self._finish()
        except BaseException as error:  # noqa: BLE001  (raised again in the consumer's thread)
            self._pages.put(error)

    def _next(self) -> Item | None:
        """Return the newest pending item, waiting while threads may add some; None at the end."""
        with self._changed:
            self._idle += 1
            while not self._pending and self._unfinished and not self._stopped:
                self._changed.wait()
            self._idle -= 1
            return None if self._stopped or not self._pending else self._pending.pop()

    def _finish(self) -> None:
        """Count an item as finished; after the last one, end the threads and the consumer."""
        with self._changed:
            self._unfinished -= 1
            if self._unfinished:
                return
            self._changed.notify_all()
        self._pages.put(None)

    def _stop(self) -> None:
        """End the threads that wait for an item and those that wait to put a page."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        while not self._pages.empty():
            self._pages.get_nowait()
