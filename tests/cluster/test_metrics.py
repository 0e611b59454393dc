"""Counters of an ingest and a labelling, read from a real node as Prometheus does."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import ray
from prometheus_client.parser import text_string_to_metric_families

from afinar.config.ingest import IngestConfig
from afinar.config.label import LabelConfig
from afinar.execution.executor import RayExecutor
from afinar.execution.metrics import NAMES, JobMetrics
from afinar.ingestion.driver import run_ingest
from afinar.labelling.driver import run_labelling
from tests.conftest import Trained, make_archive

DASHBOARD = Path(__file__).resolve().parents[2] / "infra" / "monitoring" / "dashboard.json"

Counters = dict[tuple[str, str], float]


def exported(target: str) -> Counters:
    """Return (name, stage or "") → value of the target's samples on the only node's endpoint."""
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    return {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for family in families
        for sample in family.samples
        if sample.labels.get("target") == target
    }


def wait_for_counters(target: str, wanted: Callable[[Counters], bool]) -> Counters:
    """Return the counters once `wanted` is true of them; Ray exports every ten seconds."""
    deadline = time.monotonic() + 60
    while not wanted(found := exported(target)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def test_ingest_exports_its_counters(local_ray: None, tmp_path: Path) -> None:
    source = make_archive(tmp_path / "pictures", 60)
    (source / "moss" / "broken.jpg").write_bytes(b"no picture")
    config = IngestConfig(source=str(source), dataset=str(tmp_path / "dataset"), size=32)
    summary = run_ingest(config, RayExecutor.for_job(config)).summary
    counters = wait_for_counters(
        config.dataset, lambda found: found.get(("ray_afinar_pictures_total", ""), 0) >= 121
    )
    assert counters["ray_afinar_pictures_total", ""] == 121
    assert counters["ray_afinar_rejects_total", ""] == 1
    assert counters["ray_afinar_units_total", ""] == summary.units_run > 1
    assert ("ray_afinar_units_retried_total", "") not in counters
    for stage, seconds in summary.stages.items():
        assert abs(counters["ray_afinar_stage_seconds_total", stage] - seconds) <= 0.006, (
            "the summary is rounded"
        )


def test_labelling_exports_its_counters_and_retries(
    local_ray: None, tmp_path: Path, trained: Trained
) -> None:
    config = LabelConfig(
        source=str(trained.pictures), predictions=str(tmp_path / "out"), model=trained.champion
    )
    metrics = JobMetrics("label", config.source, config.predictions)
    metrics.count_retry(2)
    summary = run_labelling(config, RayExecutor.for_job(config)).summary
    counters = wait_for_counters(
        config.predictions, lambda found: found.get(("ray_afinar_pictures_total", ""), 0) >= 80
    )
    assert counters["ray_afinar_pictures_total", ""] == summary.labelled == 80
    assert counters["ray_afinar_units_total", ""] == summary.units_run
    assert counters["ray_afinar_units_retried_total", ""] == 2
    assert counters["ray_afinar_stage_seconds_total", "forward"] > 0
    assert list(metrics.count_results(iter(["no unit", 3]))) == ["no unit", 3]


def test_dashboard_queries_exactly_the_exported_counters() -> None:
    text = DASHBOARD.read_text(encoding="utf-8")
    panels = json.loads(text)["panels"]
    queries = {target["expr"] for panel in panels for target in panel["targets"]}
    names = {f"ray_{name}_total" for name in NAMES}
    assert queries
    for expression in queries:
        assert sum(expression.count(name) for name in names) == expression.count("ray_"), expression
    assert all(any(name in expression for expression in queries) for name in names), (
        "every counter is on the dashboard"
    )
