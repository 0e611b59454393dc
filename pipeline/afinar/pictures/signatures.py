"""Descriptions of files that are no pictures, or pictures in formats that are not read.

Archives contain phones' HEIC pictures, error pages that a download saved, pointers of Git LFS and
videos, all called .jpg. The detail of a reject tells the user which, so that they know what to do.
"""

from __future__ import annotations

import re
from typing import Final

# First bytes, from most to least specific. Formats that Pillow reads are here too: a file that
# begins like one and is not recognised has a broken header.
_BEGINNINGS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"version https://git-lfs.github.com/", "a Git LFS pointer: run `git lfs pull`"),
    (b"../../.git/annex/objects/", "a git-annex pointer: run `git annex get`"),
    (b"/annex/objects/", "a git-annex pointer: run `git annex get`"),
    (b"\x00\x05\x16\x07", "an AppleDouble file: metadata that macOS stored beside a picture"),
    (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\xff\xd8", "a JPEG with a broken header"),
    (b"\x89PNG\r\n\x1a\n", "a PNG with a broken header"),
    (b"GIF8", "a GIF with a broken header"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 with a broken header"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 with a broken header"),
    (b"8BPS", "a PSD of a kind that is not read"),
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document"),
    (b"PK\x03\x04", "a ZIP archive, or an office document"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old office document, or Thumbs.db"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x00\x00\x01\xba", "an MPEG video"),
    (b"FLV\x01", "a Flash video"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (b"IIRO", "a camera's raw file (ORF)"),
    (b"IIRS", "a camera's raw file (ORF)"),
    (b"MMOR", "a camera's raw file (ORF)"),
    (b"IIU\x00", "a camera's raw file (RW2)"),
    (b"FOVb", "a camera's raw file (X3F)"),
    (b"II*\x00\x10\x00\x00\x00CR", "a camera's raw file (CR2)"),
    (b"II", "a TIFF of a kind that is not read, perhaps a camera's raw file"),
    (b"MM", "a TIFF of a kind that is not read, perhaps a camera's raw file"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"#?RGBE", "Radiance HDR"),
    (b"SIMPLE  =", "FITS"),
    (b"icns", "a macOS icon"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x80\x04", "a Python pickle"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
# Brands of ISO media files, at byte 8 after "ftyp".
_BRANDS: Final = {
    **dict.fromkeys(
        ("heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"),
        "HEIC, which phones write: convert it to JPEG",
    ),
    **dict.fromkeys(("avif", "avis"), "an AVIF with a broken header"),
    "crx ": "a camera's raw file (CR3)",
    "qt  ": "a QuickTime video",
}
_RIFF_KINDS: Final = {
    b"WEBP": "a WebP with a broken header",
    b"AVI ": "an AVI video",
    b"WAVE": "a WAV file",
}
_HEAD_BYTES: Final = 4096
_HTML: Final = re.compile(rb"<(!doctype html|html|head|body)\b", re.IGNORECASE)
_SVG: Final = re.compile(rb"<svg\b", re.IGNORECASE)
_NOT_IN_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def describe(data: bytes) -> str:
    """Return what the bytes are, as a phrase. It depends on nothing but the bytes."""
    head = data[:_HEAD_BYTES]
    if not head.strip(b"\0") and data.count(0) == len(data):
        return f"{len(data)} bytes that are all zero: a copy or a download that was not completed"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12].decode("latin-1"), "an MP4 video or another ISO media file")
    if head[:4] == b"RIFF":
        return _RIFF_KINDS.get(head[8:12], "a RIFF file that is no WebP")
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[257:262] == b"ustar":
        return "a tar archive"

    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    return _describe_text(head) or "bytes of no format that is known here"


def _describe_text(head: bytes) -> str | None:
    """Return the kind of a text, None for bytes that are not text."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a text in UTF-16"
    if _NOT_IN_TEXT.search(head):
        return None
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()

    if _SVG.search(text) and text.startswith(b"<"):
        return "SVG, which is drawn and not decoded: convert it to PNG"
    if _HTML.match(text) or (text.startswith(b"<") and _HTML.search(text)):
        return "an HTML page, perhaps an error that a download saved"
    if text.startswith(b"<"):
        return "an XML document, perhaps an error that a download saved"
    if text.startswith((b"{", b"[")):
        return "JSON, perhaps an error that a download saved"
    if text.startswith(b"data:image/"):
        return "a data URI: decode its Base64"
    return "a text"
