"""The one list of formats and endings."""

from __future__ import annotations

from PIL import Image

from afinar.config.formats import DEFAULT_EXTENSIONS, ENDINGS, extensions_identity
from afinar.config.ingest import IngestConfig
from afinar.pictures.decode import FORMATS


def test_every_ending_of_every_decoded_format_is_listed_by_default() -> None:
    Image.init()
    decoded = {*FORMATS, "MPO"}  # Pillow's name of a JPEG with further pictures
    registered = {
        ending for ending, name in Image.registered_extensions().items() if name in decoded
    }
    assert set(IngestConfig(source="a", dataset="b").endings or ()) == registered
    assert FORMATS[-1] == "TGA", "a format without magic bytes is tried last"
    assert tuple(ENDINGS) == FORMATS


def test_default_endings_have_the_identity_of_an_earlier_default() -> None:
    assert extensions_identity(DEFAULT_EXTENSIONS) == ".jpg,.jpeg,.png"
    assert extensions_identity(".tif") == ".tif"
