"""Networks and optimizers are used without torch's compiler, which works when it is asked for."""

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


USES = """
import sys, torch
from afinar.models.networks.backbones import build_backbone, meta_device_context
from afinar.training.linear_probe import Features, Objective, fit_head
from afinar.training.optimizers import optim, take_step

for name in ("efficientnet_lite0", "vit_b_16"):
    with meta_device_context(name):
        build_backbone(name, 224).eval()(torch.zeros(1, 3, 224, 224))
fit_head(Features(torch.rand(8, 4), torch.arange(8) % 2), Objective(classes=2), 1.0)
layer = torch.nn.Linear(2, 2)
optimizer = optim.AdamW(layer.parameters())
layer(torch.ones(1, 2)).sum().backward()
take_step(optimizer)
optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""


def test_planning_and_optimizers_do_not_import_the_compiler() -> None:
    assert run(USES).splitlines() == ["False"]


def test_compiler_works_after_what_was_done_without_it() -> None:
    script = (
        USES
        + """
step = torch.compile(layer, backend="eager")
step(torch.ones(1, 2)).sum().backward()
take_step(optimizer)
print(torch._dynamo.is_compiling())
"""
    )
    assert run(script).splitlines() == ["False", "False"]


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


@pytest.mark.parametrize(
    ("module", "only_in"),
    [
        ("torchvision", "vision.py"),
        ("torch.optim", "none"),
        (r"torch\b.*\boptim$", "optimizers.py"),
    ],
)
def test_only_one_module_imports(module: str, only_in: str) -> None:
    pattern = re.compile(rf"^\s*(from|import) {module}", re.MULTILINE)
    importing = {path.name for path in PACKAGE.rglob("*.py") if pattern.search(path.read_text())}
    assert importing == ({only_in} if only_in != "none" else set())
