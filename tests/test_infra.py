"""Checks of infra/ that need no Docker engine, no Kubernetes cluster and no cloud account."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
INFRA = ROOT / "infra"
LOCKS = INFRA / "lock"
RAYJOBS = sorted((INFRA / "kuberay").glob("*.yaml"))
LAUNCHER = INFRA / "launcher" / "cluster.yaml"
DOCKERFILE = INFRA / "Dockerfile"
MONITORING = INFRA / "monitoring"
TEXTS = [
    *RAYJOBS,
    *sorted(MONITORING.iterdir()),
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


# --- the jobs


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


# --- secrets


SECRETS = re.compile(
    r"""\b(AKIA|ASIA)[0-9A-Z]{16}\b                             # AWS key ids
      | -----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY                       # keys of any kind
      | \bgh[pousr]_[A-Za-z0-9]{30,}                            # tokens of code hosts
      | ://[^/\s:@]+:[^/\s:@]+@                                 # name and password in an address
      | (key|secret|token|password|passwd)\w*["']?\s*[:=]\s*["']?[A-Za-z0-9+/_-]{16,}
    """,
    re.VERBOSE | re.IGNORECASE,
)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_file_contains_no_secret(path: Path) -> None:
    assert not (match := SECRETS.search(path.read_text(encoding="utf-8"))), match


@pytest.mark.parametrize(
    "text",
    [
        "AKIA" + "ABCDEFGHIJKLMNOP",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "url: https://me:" + "hunter2@example.org/",
        "AWS_SECRET_ACCESS_KEY=" + "a" * 40,
        'auth_token: "' + "0123456789abcdef" * 2 + '"',
    ],
)
def test_pattern_matches_a_secret(text: str) -> None:
    assert SECRETS.search(text)


def test_launcher_uses_instance_profiles_and_no_keys() -> None:
    launcher = load(LAUNCHER)
    for name, kind in launcher["available_node_types"].items():
        assert kind["node_config"]["IamInstanceProfile"]["Arn"].startswith(
            "arn:aws:iam::000000000000:"
        ), name
    mounted = set(launcher["file_mounts"].values())
    assert mounted == {"~/.ray/auth_token"}, "no other file of the user is copied"
    assert "ssh_private_key" not in launcher["auth"]


# --- the launcher


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


# --- monitoring


def test_prometheus_finds_nodes_in_the_file_that_ray_writes() -> None:
    """The configuration that Ray ships names the file."""
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations
    folder = (
        Path(ray.submodule_search_locations[0])
        / "dashboard"
        / "modules"
        / "metrics"
        / "export"
        / "prometheus"
    )
    (shipped,) = load(folder / "prometheus.yml")["scrape_configs"]
    (ours,) = load(MONITORING / "prometheus.yaml")["scrape_configs"]
    assert ours == shipped


def test_pod_monitor_scrapes_the_metrics_port_of_every_pod() -> None:
    """KubeRay adds the port `metrics` to every pod of a cluster that has no port of that name."""
    monitor = load(MONITORING / "pods.yaml")
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    (rule,) = monitor["spec"]["selector"]["matchExpressions"]
    assert (rule["key"], set(rule["values"])) == ("ray.io/node-type", {"head", "worker"})
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    for path in RAYJOBS:
        for name, pod in pods(load(path)).items():
            taken = {port["containerPort"] for port in container(pod).get("ports", [])}
            assert 8080 not in taken, f"{path.name}: {name} needs port 8080 for its metrics"


# --- the image


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


# --- the README


def test_readme_names_every_file() -> None:
    text = (INFRA / "README.md").read_text(encoding="utf-8")
    for path in INFRA.rglob("*"):
        if path.is_file() and path.parent != LOCKS and path.name != "README.md":
            assert f"`{path.relative_to(INFRA)}`" in text, path.name


def test_files_named_in_the_readme_exist() -> None:
    text = (INFRA / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?:infra|tests)/[A-Za-z0-9_./-]+[A-Za-z0-9]", text))
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name
