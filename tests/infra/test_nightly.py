"""Checks of the CronJob of nightly retraining; they need no Kubernetes cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from afinar.cli import nightly, submit
from tests.infra.files import NIGHTLY, Tree, container, gibibytes, leaves, locked


@pytest.fixture(scope="module")
def documents() -> dict[str, Tree]:
    """Return the documents of the manifest by kind."""
    trees = list(yaml.safe_load_all(NIGHTLY.read_text(encoding="utf-8")))
    return {tree["kind"]: tree for tree in trees}


def pod_of(cron: Tree) -> Tree:
    spec: Tree = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    return spec


def pods(documents: dict[str, Tree]) -> dict[str, Tree]:
    cluster = documents["RayCluster"]["spec"]
    (group,) = cluster["workerGroupSpecs"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": group["template"]["spec"],
        "submit": pod_of(documents["CronJob"]),
    }


def test_one_night_at_a_time_is_started(documents: dict[str, Tree]) -> None:
    assert list(documents) == ["ConfigMap", "RayCluster", "CronJob"]
    cron = documents["CronJob"]
    assert (cron["apiVersion"], cron["metadata"]["name"]) == ("batch/v1", "afinar-nightly")
    spec = cron["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["timeZone"] == "Etc/UTC"
    assert re.fullmatch(r"\d+ \d+ \* \* \*", spec["schedule"])
    assert 0 < spec["startingDeadlineSeconds"] < 86400
    job = spec["jobTemplate"]["spec"]
    assert 0 < job["backoffLimit"] <= 3
    assert 0 < job["activeDeadlineSeconds"] < 86400, "a night ends before the next one"
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [1, 2, 3], "these are not tried again"
    assert rule["onExitCodes"]["containerName"] == container(pod_of(cron))["name"]


def test_entrypoint_and_recipe_are_accepted_by_the_command_line(
    documents: dict[str, Tree], tmp_path: Path
) -> None:
    program, command, *arguments = container(pod_of(documents["CronJob"]))["args"]
    assert (program, command) == ("afinar", "submit")
    recipe = tmp_path / "nightly.toml"
    recipe.write_text(documents["ConfigMap"]["data"]["nightly.toml"])
    (mount,) = container(pod_of(documents["CronJob"]))["volumeMounts"]
    (volume,) = pod_of(documents["CronJob"])["volumes"]
    assert volume["configMap"]["name"] == documents["ConfigMap"]["metadata"]["name"]
    assert arguments[-1] == f"{mount['mountPath']}/{recipe.name}"

    config = submit.configure([*arguments[:-1], str(recipe)])
    assert config.argv[0] == "nightly"
    assert config.address == f"http://{documents['RayCluster']['metadata']['name']}-head-svc:8265"
    night = nightly.configure(["--recipe", str(recipe)])
    assert all(path.startswith("s3://") for path in night.paths), "pods share only the bucket"


def test_cluster_is_the_locked_ray_needs_a_token_and_shrinks_to_its_head(
    documents: dict[str, Tree],
) -> None:
    cluster: dict[str, Any] = documents["RayCluster"]["spec"]
    assert cluster["rayVersion"] == locked("runtime.txt")["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert cluster["enableInTreeAutoscaling"] is True
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    night = documents["ConfigMap"]["data"]["nightly.toml"]
    workers = int(re.search(r"workers = (\d+)", night)[1])  # type: ignore[index]
    cores = int(container(group["template"]["spec"])["resources"]["limits"]["cpu"])
    assert workers == cores * group["maxReplicas"]


def test_pods_have_limits_and_no_privileges(documents: dict[str, Tree]) -> None:
    assert {container(pod)["image"] for pod in pods(documents).values()} == {"afinar:0.1.0"}
    for name, pod in pods(documents).items():
        resources = container(pod)["resources"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"], name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] == 1000, name
        assert container(pod)["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container(pod)["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert pod["automountServiceAccountToken"] is (name == "head"), name
    for name in ("head", "worker"):
        pod = pods(documents)[name]
        (volume,) = pod["volumes"]
        shared = gibibytes(volume["emptyDir"]["sizeLimit"])
        assert shared < gibibytes(container(pod)["resources"]["limits"]["memory"])


def test_credentials_come_only_from_secrets(documents: dict[str, Tree]) -> None:
    for name in ("head", "worker"):
        assert container(pods(documents)[name])["envFrom"] == [
            {"secretRef": {"name": "afinar-store"}}
        ]
    mode, token = container(pods(documents)["submit"])["env"]
    assert mode == {"name": "RAY_AUTH_MODE", "value": "token"}
    cluster = documents["RayCluster"]["metadata"]["name"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": cluster, "key": "auth_token"}
    keys = {key for tree in documents.values() for keys, _ in leaves(tree) for key in keys}
    assert not keys & {"runtimeEnvYAML", "runtime_env"}
