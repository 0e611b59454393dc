"""Checks of the file names in infra/README.md."""

from __future__ import annotations

import re

from tests.infra.files import INFRA, LOCKS, ROOT


def test_readme_names_every_file() -> None:
    text = (INFRA / "README.md").read_text(encoding="utf-8")
    for path in INFRA.rglob("*"):
        if path.is_file() and path.parent != LOCKS and path.name != "README.md":
            assert f"`{path.relative_to(INFRA)}`" in text, path.name


def test_files_named_in_the_readme_exist() -> None:
    text = (INFRA / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:infra|tests)/[A-Za-z0-9_./-]+[A-Za-z0-9]", text))
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name
