"""Cells of CSV files that people open in a spreadsheet: names in them must not become formulas.

A spreadsheet evaluates a cell that begins with one of the characters below, so a class named
`=HYPERLINK(…)` would be a link. Such a cell gets an apostrophe in front, which is removed when the
table is read. A cell that begins with apostrophes and such a character gets one more, so that each
value comes back as it was: `=x` is written `'=x`, and `'=x` is written `''=x`.
"""

from __future__ import annotations

from typing import Any, Final

import pyarrow.compute as pc

# The characters of https://owasp.org/www-community/attacks/CSV_Injection, with their full-width
# forms, which some spreadsheets treat alike.
_FORMULA: Final = r"'*[=+\-@\t\r\n\x{FF1D}\x{FF0B}\x{FF0D}\x{FF20}]"


def escape_formulas(cells: Any) -> Any:
    """Return a column of text in which no cell begins a formula."""
    return pc.replace_substring_regex(cells, rf"\A({_FORMULA})", r"'\1")


def unescape_formulas(cells: Any) -> Any:
    """Return the column that `escape_formulas` was given."""
    return pc.replace_substring_regex(cells, rf"\A'({_FORMULA})", r"\1")
