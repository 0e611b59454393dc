"""Helpers of the page tests: a class name that looks like markup, and a reader of pages."""

from __future__ import annotations

from html.parser import HTMLParser

NASTY = "<script>alert('x')</script> & $x_1$"


class Reader(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset"}
        ]

    def handle_data(self, data: str) -> None:
        self.text += data
