"""Sections of pictures, numbers and charts, which pages of several kinds contain."""

from __future__ import annotations

from dataclasses import dataclass, field

from afinar.report.charts import Chart
from afinar.report.pieces import Tile


@dataclass(kw_only=True)
class Block:
    """One section: a title, sentences, pictures, charts, and a table with its heading."""

    title: str
    texts: list[str] = field(default_factory=list)
    shots: list[Tile] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    heading: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    is_large: bool = False
