"""Commands start no process and import no module that they do not need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from afinar.storage.open import open_store
from tests.archives import flat_archive, ingest, label
from tests.conftest import Trained, make_archive

SCRIPT = """
import json, os, sys
from afinar.cli.main import main

started = []
events = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"}
sys.addaudithook(lambda event, args: started.append(str(args)) if event in events else None)
os.environ.pop("RAY_ADDRESS", None)
codes = [main(argv) for argv in json.loads(sys.argv[1])]
modules = sorted({"ray", "torch"} & set(sys.modules))
print(json.dumps({"codes": codes, "started": started, "modules": modules}))
"""


def run(*commands: list[str]) -> dict[str, Any]:
    """Run commands one after the other in a process, and return what they started and imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert outcome["codes"] == [0] * len(commands), done.stderr
    return outcome


def test_status_models_and_forget_start_nothing(trained: Trained, tmp_path: Path) -> None:
    source, dataset = make_archive(tmp_path / "pictures", 12), str(tmp_path / "dataset")
    ingest(source, dataset)
    label(source, tmp_path / "out", trained)
    outcome = run(
        ["status", dataset],
        ["status", str(tmp_path / "out")],
        ["models", trained.models, "list"],
        ["plan", "ingest", str(source), dataset],
        ["forget", dataset, "moss/003.jpg"],
        ["forget", str(tmp_path / "out"), str(source / "moss/003.jpg")],
    )
    assert outcome == {"codes": [0] * 6, "started": [], "modules": []}
    assert len(list(open_store(dataset).walk("shards"))) == 1, "the shard was rewritten"


def test_plan_of_a_labelling_starts_only_what_it_times(trained: Trained, tmp_path: Path) -> None:
    scans = flat_archive(tmp_path / "scans", 8)
    plan = ["plan", "label", str(scans), str(tmp_path / "out"), "--model", trained.champion]
    outcome = run(plan)
    # Libraries of torch look for others with ldconfig; two processes are timed that only import.
    started = [each for each in outcome["started"] if "python" in each]
    assert len(started) <= 2
    timed = ("import afinar.labelling.worker, ", "import afinar.labelling.driver, ")
    assert all(any(imports in each for imports in timed) for each in started)
    assert "ray" not in outcome["modules"]


def test_jobs_over_few_pictures_start_their_workers_and_import_neither_torch_nor_ray(
    trained: Trained, tmp_path: Path
) -> None:
    scans, out = flat_archive(tmp_path / "scans", 8), str(tmp_path / "out")
    ingesting = run(["ingest", str(scans), str(tmp_path / "dataset"), "--labels", "none"])
    labelling = run(["label", str(scans), out, "--model", trained.champion])
    for outcome in (ingesting, labelling):
        assert not {"ray", "torch"} & set(outcome["modules"])
        assert len(outcome["started"]) == 1
        assert "local_worker" in outcome["started"][0]


PANDAS = """
import sys
from afinar.units.pyarrow_setup import forgo_pandas

forgo_pandas()
import pyarrow as pa

assert pa.array(["a"]).to_pylist() == ["a"]
assert pa.table({"n": [1, 2]}).num_rows == 2
assert "pandas" not in sys.modules
assert pa.table({"n": [1, 2]}).to_pandas().n.sum() == 3
"""


def test_pyarrow_does_without_pandas_and_others_do_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PANDAS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
