"""Checks of the Prometheus configuration and of the pod monitor."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from tests.infra.files import MONITORING, RAYJOBS, container, load, pods


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
