"""Templates of the pages. Values are escaped: the name of a picture or of a class stays text."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final
from urllib.parse import quote

import jinja2

# Characters of a name that are shown; the whole name is in its title.
_NAME: Final = 44
_FILE: Final = 32


def template(name: str) -> jinja2.Template:
    """Return a template of this package. Rendering it without one of its variables is an error."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    def read(file: str) -> str:
        return files("afinar.report").joinpath(file).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(read),
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "shorten": shorten,
        "short_uri": short_uri,
    }
    return environment


def count(number: int, singular: str, plural: str = "") -> str:
    """Return a number with its noun: "1 picture", "1,200 pictures", "2 classes"."""
    return f"{number:,} {singular if number == 1 else plural or f'{singular}s'}"


def percent(share: float | None, digits: int = 1) -> str:
    """Return a share as text, such as "12.5 %"; empty for None."""
    return "" if share is None else f"{100 * share:.{digits}f} %"


def shorten(text: str, limit: int = _NAME) -> str:
    """Return at most `limit` characters of a name: its beginning and its end.

    Files of one series differ at the end of their names, so the middle is left out.
    """
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[-(limit - 1 - head) :]}"


def short_uri(uri: str) -> str:
    """Return the name of a file, shortened."""
    return shorten(uri.rsplit("/", 1)[-1], _FILE)


def file_link(uri: str) -> str:
    """Return the address of a local file, empty for an object of a store."""
    return f"file://{quote(uri)}" if uri.startswith("/") else ""
