"""ICC profiles written by hand (version 2, ICC.1:2001-04), and what they state about a colour."""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Space(NamedTuple):
    """An RGB space: the XYZ of its primaries relative to D50 as columns; None: sRGB's curve."""

    xyz: Matrix
    gamma: float | None


def _matrix(*primaries: tuple[float, float, float]) -> Matrix:
    return np.array(primaries).T


SRGB: Final = Space(
    _matrix((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)),
    None,
)
SPACES: Final = {
    "Display P3": Space(
        _matrix(
            (0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)
        ),
        None,
    ),
    "Adobe RGB": Space(
        _matrix(
            (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
        ),
        563 / 256,
    ),
    "ProPhoto RGB": Space(
        _matrix((0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.0), (0.03135, 0.00009, 0.82491)),
        1.8,
    ),
}


def rgb_profile(space: Space) -> bytes:
    """Return the profile of a space: a matrix and three equal curves."""
    columns = zip(("rXYZ", "gXYZ", "bXYZ"), space.xyz.T, strict=True)
    curves = dict.fromkeys(("rTRC", "gTRC", "bTRC"), _curve(space.gamma))
    return _profile("RGB ", {name: _xyz(*column) for name, column in columns} | curves)


def grey_profile(gamma: float) -> bytes:
    """Return the profile of a grey scale."""
    return _profile("GRAY", {"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """Return the profile of a press whose colour inks are all grey: L* = (1 - K)(1 - mean CMY)."""
    corners = np.stack(np.meshgrid(*[[0.0, 1.0]] * 4, indexing="ij"), axis=-1).reshape(-1, 4)
    lightness = (1 - corners[:, 3]) * (1 - corners[:, :3].mean(axis=1))
    lab = np.stack([lightness * 255, np.full(16, 128), np.full(16, 128)], axis=1)
    ramp = bytes(range(256))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    table += ramp * 4 + lab.round().astype(np.uint8).tobytes() + ramp * 3
    return _profile("CMYK", {"A2B0": table}, kind="prtr", connection="Lab ")


def to_srgb(pixels: NDArray[Any], space: Space) -> NDArray[np.float64]:
    """Return sRGB levels of 0 to 255 of the colours [..., 3], computed in float64."""
    share = pixels / 255
    linear = share**space.gamma if space.gamma else _srgb_linear(share)
    ours = np.clip(linear @ (np.linalg.inv(SRGB.xyz) @ space.xyz).T, 0, 1)
    encoded = np.where(ours <= 0.0031308, 12.92 * ours, 1.055 * ours ** (1 / 2.4) - 0.055)
    result: NDArray[np.float64] = 255 * encoded
    return result


def _srgb_linear(share: NDArray[Any]) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.where(
        share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4
    )
    return result


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + struct.pack(">4xIH2x", 1, round(gamma * 256))
    table = _srgb_linear(np.linspace(0, 1, 1024)) * 65535
    return b"curv" + struct.pack(">4xI", 1024) + table.round().astype(">u2").tobytes()


def _xyz(*values: float) -> bytes:
    return b"XYZ " + struct.pack(">4x3i", *(round(value * 65536) for value in values))


def _profile(
    space: str, tags: dict[str, bytes], kind: str = "mntr", connection: str = "XYZ "
) -> bytes:
    name = b"by hand\0"
    described = b"desc" + struct.pack(">4xI", len(name)) + name + bytes(78)
    tags = {
        "desc": described.ljust(-len(described) % 4 + len(described), b"\0"),
        "cprt": b"text\0\0\0\0none\0\0\0\0",
        "wtpt": _xyz(0.9642, 1, 0.82491),
        **tags,
    }
    table, body = struct.pack(">I", len(tags)), b""
    for tag, content in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        table += tag.encode() + struct.pack(">II", offset, len(content))
        body += content
    head = struct.pack(">I4xI", 132 + 12 * len(tags) + len(body), 0x02400000)
    head += (kind + space + connection).encode() + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body
