"""Objects under any names, which a store of this project would not write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def put_keys(location: str, names: Iterable[str], data: bytes = b"1") -> None:
    """Write files below a folder, or objects below an s3:// prefix."""
    if not location.startswith("s3://"):
        for name in names:
            path = Path(location, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return

    import s3fs

    s3 = s3fs.S3FileSystem()
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    for name in names:
        s3.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/{name}", Body=data)
