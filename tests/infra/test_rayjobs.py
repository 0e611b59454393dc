"""Checks of the RayJob manifests; they need no Kubernetes cluster."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.infra.files import RAYJOBS, container, gibibytes, leaves, load, locked, pods


def test_each_job_has_a_manifest() -> None:
    assert [path.stem for path in RAYJOBS] == ["ingest", "label", "train"]


@pytest.mark.parametrize("path", RAYJOBS, ids=lambda path: path.stem)
class TestRayJob:
    def test_entrypoint_is_accepted_by_the_command_line(self, path: Path) -> None:
        entrypoint = load(path)["spec"]["entrypoint"].strip()
        program, name, *words = shlex.split(entrypoint)
        assert (program, name) == ("afinar", path.stem)
        assert shlex.join(shlex.split(entrypoint)) == entrypoint, (
            "a shell must find nothing to expand in it"
        )
        config = importlib.import_module(f"afinar.cli.{name}").configure(words)
        places = [
            value for value in vars(config).values() if isinstance(value, str) and "/" in value
        ]
        assert len(places) >= 2
        assert all(place.startswith("s3://") for place in places), (
            "pods share nothing but the bucket"
        )

    def test_manifest_is_a_rayjob_with_limits(self, path: Path) -> None:
        job = load(path)
        assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
        assert re.fullmatch(r"[a-z]([a-z0-9-]{0,45}[a-z0-9])?", job["metadata"]["name"])
        spec = job["spec"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0
        assert 0 < spec["backoffLimit"] <= 3
        assert 0 < spec["preRunningDeadlineSeconds"] < spec["activeDeadlineSeconds"]
        cluster = spec["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for group in cluster["workerGroupSpecs"]:
            assert 0 < group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert pods(job)["submitter"]["restartPolicy"] == "Never"

    def test_ray_version_is_the_locked_one_and_needs_a_token(self, path: Path) -> None:
        cluster = load(path)["spec"]["rayClusterSpec"]
        assert cluster["rayVersion"] == locked("runtime.txt")["ray"]
        assert cluster["authOptions"] == {"mode": "token"}

    def test_head_has_no_cores_and_no_gpu(self, path: Path) -> None:
        job = load(path)
        cluster = job["spec"]["rayClusterSpec"]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert len(cluster["workerGroupSpecs"]) == 1
        assert "nvidia.com/gpu" not in container(pods(job)["head"])["resources"]["limits"]

    def test_only_jobs_that_use_a_gpu_request_one(self, path: Path) -> None:
        (group,) = load(path)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        resources = container(group["template"]["spec"])["resources"]
        wanted = None if path.stem == "ingest" else 1
        assert (
            resources["limits"].get("nvidia.com/gpu")
            == resources["requests"].get("nvidia.com/gpu")
            == wanted
        )
        if path.stem == "train":
            assert group["replicas"] == 2

    def test_requested_memory_is_the_limit(self, path: Path) -> None:
        for name, pod in pods(load(path)).items():
            resources = container(pod)["resources"]
            assert resources["requests"]["memory"] == resources["limits"]["memory"], name

    def test_object_store_fits_in_shared_memory_and_that_in_the_limit(self, path: Path) -> None:
        job = load(path)
        cluster = job["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            (mount,) = container(pod)["volumeMounts"]
            (volume,) = pod["volumes"]
            assert mount == {"name": volume["name"], "mountPath": "/dev/shm"}
            assert volume["emptyDir"]["medium"] == "Memory"
            store = int(group["rayStartParams"]["object-store-memory"]) / 2**30
            shared = gibibytes(volume["emptyDir"]["sizeLimit"])
            assert store < shared < gibibytes(container(pod)["resources"]["limits"]["memory"])

    def test_every_pod_runs_the_same_image_without_privileges(self, path: Path) -> None:
        specs = pods(load(path))
        assert {container(pod)["image"] for pod in specs.values()} == {"afinar:0.1.0"}
        for name, pod in specs.items():
            assert pod["securityContext"]["runAsNonRoot"] is True, name
            assert pod["securityContext"]["runAsUser"] == 1000, name
            assert pod["automountServiceAccountToken"] is False, name
            assert container(pod)["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container(pod)["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name

    def test_credentials_come_only_from_a_secret(self, path: Path) -> None:
        job = load(path)
        for name, pod in pods(job).items():
            assert container(pod)["envFrom"] == [{"secretRef": {"name": "afinar-store"}}], name
        assert not {key for keys, _ in leaves(job) for key in keys} & {
            "runtimeEnvYAML",
            "runtime_env",
            "env",
        }
