"""pyarrow without pandas, in processes of afinar's own."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _NoPandas(MetaPathFinder):
    """Finder that answers requests for pandas as if it were not installed."""

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)
        return None


def forgo_pandas() -> None:
    """Let pyarrow do without pandas from now on, unless pandas has been imported.

    pyarrow imports pandas when it makes its first array, to ask whether the values are a Series.
    That takes half a second. Afterwards `import pandas` and `to_pandas` work as usual, but pyarrow
    makes no array of a Series: call this only in a process that runs nobody else's code.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([""])  # its type is inferred: that asks for pandas a second time
    finally:
        sys.meta_path.remove(finder)
