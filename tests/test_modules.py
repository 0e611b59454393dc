"""Each module can be imported: no circle of imports, none behind a lazy import either."""

from __future__ import annotations

import ast
import random
import subprocess
import sys
from pathlib import Path

import afinar

PACKAGE = Path(afinar.__file__).parent
MODULES = sorted(
    ".".join(("afinar", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)


def test_every_module_imports() -> None:
    """In whatever order: no circle of imports follows from the next test."""
    assert len(MODULES) > 100
    order = random.sample(MODULES, len(MODULES))
    probe = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", probe, *order], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]


def _imports_inside(path: Path) -> set[str]:
    """Return the modules of ours that a module imports anywhere, lazily too, except for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = [ast.Pass()]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("afinar"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & set(MODULES)) or {str(node.module)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
    return found


def test_no_circle_of_imports_even_behind_lazy_imports() -> None:
    imports = {}
    for name in MODULES:
        path = PACKAGE.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        imports[name] = _imports_inside(path) - {name, "afinar"}

    # Remove modules that import nothing more, again and again: what stays is in or above a circle.
    while leaves := {name for name, needs in imports.items() if not needs & imports.keys()}:
        imports = {name: needs for name, needs in imports.items() if name not in leaves}
    circle = {name: sorted(needs & imports.keys()) for name, needs in imports.items()}
    assert not circle, circle


def test_the_probe_of_circles_sees_lazy_imports(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "def later():\n    from afinar.storage.s3 import S3Store\n    return S3Store\n"
    )
    assert _imports_inside(module) == {"afinar.storage.s3"}
