"""Helpers of the page tests: names that look like markup, and a reader of pages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

NASTY = "<script>alert('x')</script> & $x_1$"
RIGHT_TO_LEFT = "قطة \u202egpj.exe"
LONG = "a very long name of a class, " * 6

# Elements without an end tag.
_VOID = frozenset({"meta", "br", "img", "input", "link", "hr"})


@dataclass
class Table:
    """Texts of the cells of a table, row by row: the heading first."""

    rows: list[list[str]] = field(default_factory=list)


class Reader(HTMLParser):
    """Collects what a page has; `problems` lists markup that is not well-formed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.titles: list[str] = []
        self.tables: list[Table] = []
        self.problems: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in {"src", "href", "srcset"}
        ]
        if len(attributes) != len(attrs):
            self.problems.append(f"<{tag}> has an attribute twice: {attrs}")
        if attributes.get("id"):
            self.ids.append(attributes["id"] or "")
        if attributes.get("title"):
            self.titles.append(attributes["title"] or "")
        if tag == "img":
            self.images.append(attributes)
        if tag == "table":
            self.tables.append(Table())
        if tag == "tr":
            self.tables[-1].rows.append([])
        if tag in {"td", "th"}:
            self.tables[-1].rows[-1].append("")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self._open[-1:]}")
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in {"style", "script"}:
            return
        self.text += data
        if {"td", "th"} & set(self._open) and self.tables:
            self.tables[-1].rows[-1][-1] += data

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    def table_below(self, *heading: str) -> list[list[str]]:
        """Return the rows of the table with these headings, without the heading itself."""
        for table in self.tables:
            if table.rows and table.rows[0][: len(heading)] == list(heading):
                return [[" ".join(cell.split()) for cell in row] for row in table.rows[1:]]
        raise AssertionError(f"no table begins with {heading}")


def section(page: str, anchor: str) -> str:
    """Return the HTML of one section of a page."""
    found = re.search(rf'<section id="{anchor}">.*?</section>', page, re.DOTALL)
    assert found, anchor
    return found[0]


def assert_sound(page: str) -> Reader:
    """Check what every page promises, and return its reader.

    Its markup is well-formed, it loads nothing, all images have a text, links lead to a picture of
    this machine, a page beside it or an anchor that exists, and there is one script: the page's.
    """
    reader = Reader(page)
    assert not reader.problems
    assert reader.tags.count("script") == 1
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|url\(|@import", page)

    assert all(image["alt"] for image in reader.images)
    assert len(set(reader.ids)) == len(reader.ids)
    for address in reader.addresses:
        if address.startswith("#"):
            assert address[1:] in reader.ids, address
        else:
            allowed = r"data:image/jpeg;base64,|file:///|runs/|\.\./index\.html|[-\d]+/report\.html"
            assert re.match(allowed, address), address[:80]
    return reader
