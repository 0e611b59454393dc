"""Rejects tell what a file is, in the same words in every run."""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile

import pytest

from afinar.pictures.decode import FORMATS, decode
from afinar.pictures.preprocessing import StoredView
from afinar.pictures.rejects import PictureError, Reason
from afinar.pictures.signatures import describe
from tests.pictures.files import photograph, png_claiming, saved

VIEW = StoredView(size=16, fit="crop")
PHOTO = photograph(1, 64, 48)


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("picture.jpg", b"x")
    return sink.getvalue()


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("picture.jpg"))
    return sink.getvalue()


def _media(brand: bytes) -> bytes:
    return b"\0\0\0\x1cftyp" + brand + b"\0\0\2\0" + brand + bytes(400)


NOT_PICTURES = {
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0f" * 32: "Git LFS pointer",
    b"../../.git/annex/objects/Xx/yZ/SHA256E-s3--ab.jpg": "git-annex",
    b"\n <!doctype HTML>\n<title>Sign in</title>": "HTML",
    b"<!-- cached --><html>": "HTML",
    b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>': "XML",
    b'<?xml version="1.0"?>\n<svg width="9"/>': "SVG",
    b'{"message": "rate limit"}': "JSON",
    b"Not found\n": "a text",
    "größer als erlaubt".encode("utf-16"): "UTF-16",
    b"data:image/png;base64,iVBORw0KGgo=": "data URI",
    bytes(5000): "all zero",
    _media(b"heic"): "HEIC",
    _media(b"mif1"): "HEIC",
    _media(b"avif"): "AVIF",
    _media(b"isom"): "MP4",
    _media(b"qt  "): "QuickTime",
    _media(b"crx "): "CR3",
    b"II*\0\x10\0\0\0CR\2\0" + bytes(99): "CR2",
    b"FUJIFILMCCD-RAW 0201": "RAF",
    b"\xff\x0a" + bytes(99): "JPEG XL",
    b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(9): "JPEG XL",
    b"%PDF-1.7\n": "PDF",
    b"Rar!\x1a\x07\x01\0": "RAR",
    b"7z\xbc\xaf\x27\x1c\0\4": "7z",
    gzip.compress(b"x"): "gzip",
    _zip(): "ZIP",
    _tar(): "tar",
    b"\x1a\x45\xdf\xa3" + bytes(40): "Matroska",
    b"RIFF\x24\0\0\0AVI LIST": "AVI",
    bytes(128) + b"DICM" + bytes(9): "DICOM",
    b"\0\5\x16\7\0\2\0\0Mac OS X": "AppleDouble",
    b"\x93NUMPY\1\0": "NumPy",
    b"\x89PNG\r\n\x1a\n\0\0\0\0": "PNG with a broken header",
    b"\xff\xd8\xff\xd8\xff": "JPEG with a broken header",
    b"\x07\x01\xf3" * 9: "no format that is known",
}


@pytest.mark.parametrize(("data", "name"), NOT_PICTURES.items(), ids=NOT_PICTURES.values())
def test_reject_tells_what_a_file_is(data: bytes, name: str) -> None:
    with pytest.raises(PictureError) as caught:
        decode(data, VIEW)
    assert caught.value.reason == Reason.UNIDENTIFIED
    assert name in caught.value.detail
    assert "\n" not in caught.value.detail


def rejects() -> dict[str, str]:
    """Return the text of a reject for each way to damage a file of each format."""
    damaged = {f"not {name}": data for data, name in NOT_PICTURES.items()}
    for kind in FORMATS:
        if kind in {"PSD"}:  # Pillow does not write it
            continue
        mode = "RGBA" if kind == "ICO" else "P" if kind == "GIF" else "RGB"
        data = saved(PHOTO.convert(mode), kind)
        damaged |= {f"{kind} cut at {at}": data[:at] for at in (1, 12, 40, len(data) // 2)}
        for at in (4, 16, 24, 60, len(data) // 3):
            damaged[f"{kind} changed at {at}"] = data[:at] + b"\xff\0\xfe\x7f" + data[at + 4 :]
    damaged |= {"bomb": png_claiming(60_000, 60_000), "empty": b""}

    texts = {}
    for name, data in damaged.items():
        try:
            decode(data, VIEW)
        except PictureError as error:
            texts[name] = str(error)
    return texts


def test_rejects_are_equal_in_every_run() -> None:
    first, kept, second = rejects(), [object() for _ in range(99)], rejects()
    assert len(first) > 60 and kept
    assert first == second
    assert [text for text in first.values() if re.search(r"0x[0-9a-f]{6}|object at", text)] == []


def test_description_depends_on_bytes_alone() -> None:
    assert describe(b"\0" * 7) == describe(bytes(7))
    assert describe(b"\0" * 5000 + b"x") == "bytes of no format that is known here"
