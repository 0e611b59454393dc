"""Picture formats that are decoded, with the file name endings of each.

This is the only list of formats: `pictures.decode` passes its keys to Pillow, and its endings are
the default of --extensions. Pillow registers 43 formats, some of them thin wrappers over
Ghostscript or barely tested; those are left out.
"""

from __future__ import annotations

from typing import Final

ENDINGS: Final = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),  # MPO: a JPEG with further pictures
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "ICO": (".ico",),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    "PCX": (".pcx",),
    "DDS": (".dds",),
    "PSD": (".psd",),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    # Last: it has no magic bytes, and accepts icons too.
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}

DEFAULT_EXTENSIONS: Final = ",".join(ending for endings in ENDINGS.values() for ending in endings)
"""Default of --extensions: all endings of all formats."""

_FIRST_DEFAULT: Final = ".jpg,.jpeg,.png"


def extensions_identity(extensions: str) -> str:
    """Return `extensions` as the names of plans contain it: any default as the first default.

    So a job without --extensions resumes the plan of an earlier release. What the default lists is
    part of the plan itself.
    """
    return _FIRST_DEFAULT if extensions == DEFAULT_EXTENSIONS else extensions
