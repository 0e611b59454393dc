"""Templates of pages: whatever a picture or a class may be called stays text."""

from __future__ import annotations

from importlib.resources import files

import jinja2


def template(name: str) -> jinja2.Template:
    """A template of this folder. A variable that is missing is an error, not an empty place."""

    def text(one: str) -> str:
        return files("afinar.report").joinpath(one).read_text(encoding="utf-8")

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(text),
    ).get_template(name)
