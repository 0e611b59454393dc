"""Three sets of real pictures for benches of accuracy, as folders of classes.

    fabric      2,000 JPEGs of simulated fabric, 3 classes: package conformal-clip-data (MIT)
    photos      123 WebP photographs, 4 classes: Debian package gcompris-qt-data (CC-BY-SA, CC0, PD)
    stamps      photographs and drawings, 14 or more classes: Debian package tuxpaint-stamps-default
                (CC-BY-SA, GPL-2+, public domain)

The Debian packages are downloaded by `apt-get` and unpacked, not installed.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.bench.world import NotMeasuredError

_PHOTO_CLASSES = ("fishes", "monuments", "renewable", "tools")
_STAMPS_LEFT_OUT = {"alphabets", "math"}  # letters and digits, drawn by one font


def make_fabric(folder: Path) -> Path:
    """Copy the fabric pictures, one folder per class."""
    import conformal_clip_data

    root = Path(conformal_clip_data.__file__).parent
    for path in sorted(root.rglob("*.jpg")):
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folder


def make_photos(folder: Path, scratch: Path) -> Path:
    """Extract the photographs from the resource file of GCompris."""
    root = _unpack("gcompris-qt-data", scratch)
    resources = next(root.rglob("categorization.rcc"))
    for name, data in _resource_files(resources.read_bytes()):
        *_, label, file = name.split("/")
        if label in _PHOTO_CLASSES and data[8:12] == b"WEBP":
            target = folder / label / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    return folder


def make_stamps(folder: Path, scratch: Path, minimum: int = 11) -> Path:
    """Copy the stamps of every group that has at least `minimum`: 18 classes, or 20 with 10."""
    root = _unpack("tuxpaint-stamps-default", scratch)
    groups = [path for path in sorted(root.rglob("stamps/*/*")) if path.is_dir()]
    for group in groups:
        pictures = sorted(group.rglob("*.png"))
        if len(pictures) < minimum or group.name in _STAMPS_LEFT_OUT:
            continue
        target = folder / f"{group.parent.name}-{group.name}"
        target.mkdir(parents=True, exist_ok=True)
        for path in pictures:
            shutil.copyfile(path, target / path.name)
    return folder


def _unpack(package: str, scratch: Path) -> Path:
    """Download and unpack a Debian package, once."""
    root = scratch / package
    if root.exists():
        return root
    scratch.mkdir(parents=True, exist_ok=True)
    for command in (["apt-get", "-qq", "update"], ["apt-get", "-qq", "download", package]):
        if subprocess.run(command, cwd=scratch, capture_output=True, check=False).returncode:
            raise NotMeasuredError(f"apt-get cannot download {package} on this machine")
    (archive,) = scratch.glob(f"{package}_*.deb")
    subprocess.run(["dpkg-deb", "-x", str(archive), str(root)], check=True)
    return root


def _resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield path and content of each file of a Qt resource file (rcc, format 1 to 3)."""
    version, tree, contents, names = struct.unpack(">4xIIII", data[:20])
    node_bytes = 14 if version == 1 else 22

    def walk(number: int, folder: str) -> Iterator[tuple[str, bytes]]:
        node = data[tree + number * node_bytes :][:node_bytes]
        name_offset, flags = struct.unpack(">IH", node[:6])
        (length,) = struct.unpack(">H", data[names + name_offset :][:2])
        name = data[names + name_offset + 6 :][: 2 * length].decode("utf-16-be")
        path = f"{folder}/{name}"
        if flags & 2:  # a folder
            count, first = struct.unpack(">II", node[6:14])
            for child in range(first, first + count):
                yield from walk(child, path)
            return
        (offset,) = struct.unpack(">I", node[10:14])
        (size,) = struct.unpack(">I", data[contents + offset :][:4])
        content = data[contents + offset + 4 :][:size]
        yield path, zlib.decompress(content[4:]) if flags & 1 else content

    return walk(0, "")
