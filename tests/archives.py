"""Archives of pictures, and jobs that run on them in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.ingestion.driver import IngestSummary, run_ingest
from afinar.labelling.driver import LabelSummary, run_labelling
from afinar.storage.folder_reader import FolderReader
from afinar.units.executor import InlineExecutor
from tests.conftest import TINTS, Trained, jpeg
from tests.executors import InterruptedExecutor

BROKEN: Final = {"empty": b"", "unidentified": b"see the next box", "truncated": jpeg(1)[:700]}
"""Contents of files that are no pictures, by the reason for which they are rejected."""


def picture(seed: int) -> bytes:
    """Return a JPEG of the class moss for an odd seed, of rust for an even one."""
    return jpeg(seed, tint=TINTS["moss" if seed % 2 else "rust"])


def flat_archive(folder: Path, pictures: int, first_seed: int = 0) -> Path:
    """Write `000.jpg`, `001.jpg`, … without class folders, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        (folder / f"{number:03d}.jpg").write_bytes(picture(first_seed + number))
    return folder


def ingest(
    source: Path | str, dataset: Path | str, executor: Any = None, **options: Any
) -> IngestSummary:
    """Ingest a source, by default at 64 px and in this process."""
    config = IngestConfig(**{"source": str(source), "dataset": str(dataset), "size": 64, **options})
    return run_ingest(config, executor or InlineExecutor()).summary


def interrupt_addition(archive: Path, dataset: str) -> None:
    """Add 100 pictures to an archive and end their ingest, two units, after the first unit."""
    for number in range(100):
        (archive / "rust" / f"new-{number}.jpg").write_bytes(jpeg(20_000 + number))
    with pytest.raises(KeyboardInterrupt):
        ingest(archive, dataset, InterruptedExecutor(1))


def fail_reads(patch: pytest.MonkeyPatch, pictures: Path, error: Exception) -> None:
    """Make reads of a picture, or of every picture below a folder, raise an error."""
    read = FolderReader.get

    def get(self: FolderReader, name: str, etag: str | None = None) -> bytes:
        if (Path(self.root) / name).is_relative_to(pictures):
            raise error
        return read(self, name, etag)

    patch.setattr(FolderReader, "get", get)


def label(
    source: Path | str,
    out: Path | str,
    model: Trained | str,
    executor: Any = None,
    render_page: Any = None,
    **options: Any,
) -> LabelSummary:
    """Label a source, by default with the champion and in this process."""
    config = LabelConfig(
        source=str(source),
        predictions=str(out),
        model=model.champion if isinstance(model, Trained) else model,
        **options,
    )
    return run_labelling(config, executor or InlineExecutor(), render_page).summary
