"""Templates of the pages. Values are escaped: the name of a picture or of a class stays text."""

from __future__ import annotations

from importlib.resources import files

import jinja2


def template(name: str) -> jinja2.Template:
    """Return a template of this package. Rendering it without one of its variables is an error."""

    def read(file: str) -> str:
        return files("afinar.report").joinpath(file).read_text(encoding="utf-8")

    return jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(read),
    ).get_template(name)
