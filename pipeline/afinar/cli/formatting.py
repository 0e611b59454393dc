"""Text of summaries: counts, sizes and aligned tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from afinar.logs import COLUMNS, escape_controls, wrap
from afinar.storage.left_out import describe_left_out


def escape_names(value: Any) -> Any:
    """Return a summary in which all texts, keys too, have their control characters escaped."""
    if isinstance(value, str):
        return escape_controls(value)
    if isinstance(value, dict):
        return {escape_names(key): escape_names(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_names(item) for item in value]
    return value


def format_counts(counts: Mapping[str, int]) -> str:
    """Return counts as "a 3, b 1"; "none" if there are none."""
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def format_notes(notes: Iterable[str]) -> list[str]:
    """Return lines for the notes of a summary, as trainings log theirs."""
    return [wrap(f"note: {note}") for note in notes]


def format_left_out(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return the row of a table on what a listing left out, such as "12 .txt, 3 without ending"."""
    return [("left out", describe_left_out(counts))] if counts else []


def format_time(summary: Mapping[str, Any]) -> str:
    """Return the time of a job as "3.2 s, 120 pictures/s"; without a rate if it read none."""
    time, rate = f"{summary['seconds']:.1f} s", summary["images_per_second"]
    if not rate:
        return time
    return f"{time}, {rate:.0f} pictures/s" if rate >= 10 else f"{time}, {rate:.1f} pictures/s"


def format_size(size_bytes: float) -> str:
    """Return a number of bytes as "3.2 GB"; B and kB without a decimal."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000 or unit == "TB":
            break
        size_bytes /= 1000
    return f"{size_bytes:.0f} {unit}" if unit in {"B", "kB"} else f"{size_bytes:.1f} {unit}"


def format_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Return rows of texts as aligned columns, the first row being the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def format_table(rows: list[tuple[str, str]]) -> str:
    """Return names and values as two aligned columns; long values continue below themselves."""
    width = max(len(name) for name, _ in rows)
    room = COLUMNS - width - 2
    lines = []
    for name, value in rows:
        first, *others = wrap(value, 0, room).splitlines() or [""]
        lines.append(f"{name:<{width}}  {first}".rstrip())
        lines += [f"{'':<{width}}  {line}" for line in others]
    return "\n".join(lines)
