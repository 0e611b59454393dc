"""Check of a body that was read from a bucket against the object's ETag.

Most stores give an object that was put in one piece the MD5 of its bytes as ETag: 32 hex digits.
Hashing the body again costs 0.13 ms per 100 KB and shows a bit that the network changed. But under
SSE-KMS, and on some stores always, the ETag looks like an MD5 and is something else. So a mismatch
alone proves nothing, and the object is read again.

Example, where the ETag is the MD5 of `abc`:

    reading 1   abd   MD5 differs                 read again
    reading 2   abc   MD5 matches                 return abc; ETags of this bucket are MD5s

Example of a bucket whose ETags are not MD5s:

    reading 1   abc   MD5 differs                 read again
    reading 2   abc   MD5 differs, same body      return abc; one mismatched object

After three mismatched objects in a row the bucket's ETags are not checked any more, so the second
reading is paid three times per process. After a match, five equal readings are needed to return a
body that does not match: an altered body may be repeated, by a caching proxy for example.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from typing import Final

from afinar.errors import StorageError

_MD5: Final = re.compile(r'"?([0-9a-f]{32})"?')
_READINGS: Final = 5
_EQUAL_READINGS: Final = 2  # enough as long as no ETag of the bucket was an MD5
# One mismatched object may be an exception in a bucket whose other ETags are MD5s; three in a row
# are not.
_MISMATCHED_OBJECTS: Final = 3


class EtagVerifier:
    """State of one bucket: whether its ETags are MD5s. Threads may share it."""

    def __init__(self) -> None:
        self._etag_is_md5 = False  # an ETag of this bucket was the MD5 of its body
        self._mismatched_objects = 0  # in a row; their readings agreed with each other

    def read(self, uri: str, fetch: Callable[[], tuple[bytes, str]]) -> bytes:
        """Return the body of `uri`, reading it again while it may have been altered on the way.

        `fetch` reads the object once and returns its body and its ETag. Raises StorageError if five
        readings do not agree.
        """
        readings: Counter[str] = Counter()
        for _ in range(_READINGS):
            body, etag = fetch()
            md5 = _MD5.fullmatch(etag)
            if md5 is None or self._mismatched_objects >= _MISMATCHED_OBJECTS:
                return body

            digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if digest == md5[1]:
                self._etag_is_md5, self._mismatched_objects = True, 0
                return body

            readings[digest] += 1
            if readings[digest] == (_READINGS if self._etag_is_md5 else _EQUAL_READINGS):
                self._mismatched_objects += 1
                return body

        raise StorageError(
            f"{uri}: {_READINGS} readings gave {len(readings)} bodies; something alters them on "
            "the way"
        )
