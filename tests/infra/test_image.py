"""Checks of the Dockerfile and its locks; they need no Docker engine."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch

from tests.infra.files import (
    DOCKERFILE,
    INFRA,
    LOCKS,
    ROOT,
    environment,
    instructions,
    last_stage,
    locked,
)


def paths_read_by_dockerfile() -> Iterator[str]:
    """Yield the files and folders of the checkout that the Dockerfile copies or mounts."""
    for word, rest in instructions():
        if word == "COPY" and "--from=" not in rest:
            yield from rest.split()[:-1]
        for mount in re.findall(r"--mount=(\S+)", rest):
            options = dict(option.partition("=")[::2] for option in mount.split(","))
            if options["type"] == "bind" and "from" not in options:
                yield options["source"]


def test_paths_that_the_dockerfile_reads_exist_and_are_sent_to_the_builder() -> None:
    ignore = (INFRA / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in ignore if line and not line.startswith("#")]
    assert rules[0] == "*", "all paths are ignored but those that are named"
    allowed = [rule[1:] for rule in rules if rule.startswith("!")]
    read = list(paths_read_by_dockerfile())
    assert len(read) >= 7
    for name in read:
        assert (ROOT / name).exists(), name
        assert any(fnmatch(name.rstrip("/"), rule) for rule in allowed), (
            f"{name} is not sent to the builder"
        )
    for rule in allowed:
        assert any(fnmatch(name, rule) for name in read), (
            f"{rule} is sent to the builder and not read"
        )


def test_every_package_is_installed_by_hash() -> None:
    installing = [
        rest
        for word, rest in instructions()
        if word == "RUN" and re.search(r"\bpip install|uv build", rest)
    ]
    assert len(installing) == 4
    for command in installing:
        assert "--require-hashes" in command or {"--no-deps", "--no-index"} <= set(
            command.split()
        ), command
    for lock in re.findall(r"lock/([a-z]+\.txt)", " ".join(installing)):
        text = (LOCKS / lock).read_text(encoding="utf-8")
        assert len(re.findall(r"^[a-z0-9._-]+==", text, re.MULTILINE)) <= text.count(
            "--hash=sha256:"
        ), lock


def test_installed_packages_are_compiled() -> None:
    installing = [rest for word, rest in last_stage() if word == "RUN" and "pip install" in rest]
    assert len(installing) == 2
    assert all("--compile-bytecode" in command for command in installing)


def test_locks_that_are_installed_together_agree() -> None:
    runtime, launcher = locked("runtime.txt"), locked("launcher.txt")
    shared = runtime.keys() & launcher.keys()
    assert "botocore" in shared
    assert {name: launcher[name] for name in shared} == {name: runtime[name] for name in shared}


def test_image_has_a_python_version_that_the_project_supports() -> None:
    (tag,) = [rest.partition("=")[2] for word, rest in instructions() if word == "ARG"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    least = project["requires-python"].removeprefix(">=")
    assert "slim" in tag
    assert tuple(map(int, tag.split("-")[0].split("."))) >= tuple(map(int, least.split(".")))


def test_image_runs_as_an_ordinary_user_in_a_folder_without_sources() -> None:
    stage = last_stage()
    assert [rest for word, rest in stage if word == "USER"] == ["1000:1000"]
    assert [rest for word, rest in stage if word == "WORKDIR"] == [environment()["HOME"]]
    assert not [rest for word, rest in stage if word in {"COPY", "ADD"}], (
        "a folder of sources would be imported instead of the installed package"
    )


def test_image_has_the_programs_that_the_launcher_and_kuberay_run() -> None:
    (packages,) = [
        rest for word, rest in last_stage() if word == "RUN" and "apt-get install" in rest
    ]
    assert {"openssh-client", "rsync", "wget"} <= set(packages.split())


def test_no_package_index_is_named() -> None:
    for path in (DOCKERFILE, *LOCKS.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://|index-url|find-links|(PIP|UV)_\w*INDEX", text), path.name
