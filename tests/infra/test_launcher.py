"""Checks of the cluster launcher's file; they need no cloud account."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from tests.infra.files import LAUNCHER, Tree, environment, load


def test_launcher_is_valid_by_the_schema_of_ray() -> None:
    jsonschema.validate(load(LAUNCHER), ray_schema())


def test_schema_of_ray_refuses_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate({**load(LAUNCHER), "max_worker": 8}, ray_schema())


def ray_schema() -> Tree:
    spec = importlib.util.find_spec("ray")  # found, not imported: an import takes a second
    assert spec is not None
    assert spec.submodule_search_locations
    text = Path(spec.submodule_search_locations[0], "autoscaler", "ray-schema.json").read_text(
        encoding="utf-8"
    )
    schema: Tree = json.loads(text)
    return schema


def test_launcher_scales_its_workers_and_its_head_has_no_cores() -> None:
    launcher = load(LAUNCHER)
    kinds = dict(launcher["available_node_types"])
    head = kinds.pop(launcher["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert kinds
    for kind in kinds.values():
        assert 0 <= kind["min_workers"] < kind["max_workers"] <= launcher["max_workers"]


def test_launcher_overrides_the_default_setup_commands() -> None:
    """A missing key gets Ray's default, which installs a nightly Ray over the image's."""
    launcher = load(LAUNCHER)
    for kind in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert launcher[kind] == [], kind
    for role in ("head", "worker"):
        assert any("ray start" in command for command in launcher[f"{role}_start_ray_commands"]), (
            role
        )


def test_launcher_requires_a_token_and_binds_the_dashboard_to_loopback() -> None:
    launcher = load(LAUNCHER)
    assert "--env RAY_AUTH_MODE=token" in launcher["docker"]["run_options"]
    assert any(
        "--dashboard-host=127.0.0.1" in command for command in launcher["head_start_ray_commands"]
    )
    (place,) = launcher["file_mounts"]
    assert place == f"{environment()['HOME']}/.ray/auth_token", "where Ray in the image reads it"
