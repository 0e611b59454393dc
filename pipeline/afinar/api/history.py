"""The versions of a model in Python: list them, promote one, roll back."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afinar.cli.models import describe
from afinar.config.models import Action, ModelsConfig
from afinar.models.registry.versions import ModelVersion, find_model
from afinar.report.models import run_models

if TYPE_CHECKING:
    from afinar.api.model import Model


class Models:
    """The versions of a model: `open_models` returns it. It always shows what is published now.

    It is a sequence of records: `models[3]` is the record of version 3 (its `metrics`, `lineage`,
    `classes` …), and iterating gives all of them, the oldest first.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._run("list")  # raises RequestError if there are none

    def _run(
        self, action: Action, version: str = "", why: str = "", alias: str = "champion"
    ) -> dict[str, Any]:
        return run_models(
            ModelsConfig(models=self.uri, action=action, version=version, why=why, alias=alias)
        )

    def __len__(self) -> int:
        return len(self._run("list")["versions"])

    def __getitem__(self, version: int | str) -> ModelVersion:
        """Return the record of a version: its number, its id, "latest" or an alias ("champion")."""
        return find_model(f"{self.uri}@{version}").version

    def __iter__(self) -> Iterator[ModelVersion]:
        return (self[row["version"]] for row in self._run("list")["versions"])

    @property
    def champion(self) -> ModelVersion:
        """The record of the version that `--model MODELS` and `open_model(MODELS)` use."""
        return self["champion"]

    def open(self, version: int | str = "champion", device: str = "cpu") -> Model:
        """Load a version, as `open_model` does."""
        from afinar.api.model import open_model

        return open_model(f"{self.uri}@{version}", device=device)

    def promote(self, version: int | str, why: str = "", alias: str = "champion") -> None:
        """Make a version the champion, or give it another alias, and record the reason.

        Raises ShortfallError if another job moves the alias at the same time.
        """
        self._run("promote", str(version), why, alias)

    def rollback(self, why: str = "", alias: str = "champion") -> None:
        """Return to the champion, or the version of an alias, before this one."""
        self._run("rollback", why=why, alias=alias)

    def retire(self, version: int | str, why: str = "") -> None:
        """Take a version out of use: it cannot be promoted or used to label any more."""
        self._run("retire", str(version), why)

    def __repr__(self) -> str:
        return describe(self._run("list"))

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def open_models(uri: str | Path) -> Models:
    """Open the history of a model, which `afinar train DATASET MODELS` writes.

    `uri` is a folder or s3://BUCKET/PREFIX. Raises RequestError if it holds no model.
    """
    return Models(str(uri))
