"""torchvision is imported without torch's compiler, which works when it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import afinar

PACKAGE = Path(afinar.__file__).parent


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("module", ["afinar.labelling.worker", "afinar.training.driver"])
def test_workers_do_not_import_the_compiler(module: str) -> None:
    modules = run(f"import sys, {module}; print('|'.join(sys.modules))").split("|")
    assert "torchvision.models" in modules
    assert not {"torch._dynamo", "torch._inductor", "sympy"} & set(modules)


def test_compiler_works_after_torchvision_was_imported_without_it() -> None:
    script = """
import torch
from afinar.models.networks import vision
from torchvision.ops import roi_align
print(tuple(roi_align(torch.rand(1, 3, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2).shape))
import torch._dynamo.utils
print(torch._dynamo.utils.is_compile_supported("cpu") in {True, False})
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
"""
    assert run(script).splitlines() == ["(1, 3, 2, 2)", "True", "2.0"]


def test_only_one_module_imports_torchvision() -> None:
    importing = {
        path.name
        for path in PACKAGE.rglob("*.py")
        if re.search(r"^\s*(from|import) torchvision", path.read_text(), re.MULTILINE)
    }
    assert importing == {"vision.py"}
