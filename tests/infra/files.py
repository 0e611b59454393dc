"""Files of infra/, parsed for the tests of this folder."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
LOCKS = INFRA / "lock"
RAYJOBS = sorted((INFRA / "kuberay").glob("*.yaml"))
NIGHTLY = INFRA / "cronjob" / "nightly.yaml"
LAUNCHER = INFRA / "launcher" / "cluster.yaml"
DOCKERFILE = INFRA / "Dockerfile"
MONITORING = INFRA / "monitoring"
TEXTS = [
    *RAYJOBS,
    *sorted(MONITORING.iterdir()),
    NIGHTLY,
    LAUNCHER,
    DOCKERFILE,
    INFRA / "Dockerfile.dockerignore",
    INFRA / "README.md",
]

Tree = dict[str, Any]


def load(path: Path) -> Tree:
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(tree, dict), path
    return tree


def leaves(tree: object, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield every scalar of a tree with the keys that lead to it."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from leaves(value, (*path, str(key)))
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, path)
    else:
        yield path, tree


def pods(job: Tree) -> dict[str, Tree]:
    """Return the pod specs of a RayJob: submitter, head, and each group of workers."""
    cluster = job["spec"]["rayClusterSpec"]
    specs = {
        "submitter": job["spec"]["submitterPodTemplate"]["spec"],
        "head": cluster["headGroupSpec"]["template"]["spec"],
    }
    workers = cluster["workerGroupSpecs"]
    return specs | {group["groupName"]: group["template"]["spec"] for group in workers}


def container(pod: Tree) -> Tree:
    (only,) = pod["containers"]
    assert isinstance(only, dict)
    return only


def gibibytes(quantity: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) / {"Mi": 1024, "Gi": 1}[unit]


def locked(lock: str) -> dict[str, str]:
    """Return the locked versions by name, without packages locked twice, for different Pythons."""
    pins = re.findall(
        r"^([a-z0-9._-]+)==(\S+)", (LOCKS / lock).read_text(encoding="utf-8"), re.MULTILINE
    )
    names = [name for name, _ in pins]
    return {name: version for name, version in pins if names.count(name) == 1}


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions in order, with continued lines joined."""
    lines = [
        line
        for line in DOCKERFILE.read_text(encoding="utf-8").splitlines()
        if not line.lstrip().startswith("#")
    ]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    parts = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(word, rest) for word, rest in parts]


def last_stage() -> list[tuple[str, str]]:
    stages = instructions()
    start = max(number for number, (word, _) in enumerate(stages) if word == "FROM")
    return stages[start:]


def environment() -> dict[str, str]:
    return dict(
        pair.split("=", 1)
        for word, rest in last_stage()
        if word == "ENV"
        for pair in shlex.split(rest)
    )
