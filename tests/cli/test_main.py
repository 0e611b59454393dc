"""The command line: exit codes, messages, help, one JSON object."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from afinar.cli.main import COMMANDS, main
from afinar.config.ingest import IngestConfig
from afinar.ingestion.driver import run_ingest
from afinar.logs import LogSettings, configure_logging, log_settings
from afinar.units.executor import InlineExecutor
from tests.conftest import Trained, jpeg, make_archive, run_afinar

HEAVY = ("torch", "torchvision", "ray")

PROBE = """
import sys
from afinar.cli.main import main
code = main(sys.argv[1:])
print(code, *[name for name in {heavy!r} if name in sys.modules])
"""


class Refusal(NamedTuple):
    """Exit code and stderr of a command, and the heavy libraries that it imported."""

    code: int
    stderr: str
    imported: list[str]


def run_refused(*argv: str, cwd: Path) -> Refusal:
    """Run a command that is refused, in a new process."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROBE.format(heavy=HEAVY), *argv],
        cwd=cwd, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    code, *imported = done.stdout.strip().splitlines()[-1].split()
    return Refusal(int(code), done.stderr, imported)


@pytest.fixture
def requests(tmp_path: Path, trained: Trained) -> dict[str, str]:
    """Files and folders for wrong requests; the names stand for paths that are only known here."""
    make_archive(tmp_path / "one-class", 2, ("moss",))
    (tmp_path / "no-pictures").mkdir()
    (tmp_path / "a-file").write_text("")
    (tmp_path / "misspelt.toml").write_text('sise = 64\nlabels = "folder"\n')
    (tmp_path / "mistyped.toml").write_text('size = "64"\n')
    return {"GOOD": str(trained.pictures), "DATASET": trained.dataset, "MODEL": trained.champion}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("ingest nowhere out", "does not exist"),
        ("ingest no-pictures out", "holds no pictures"),
        ("ingest one-class out", "only the class 'moss'"),
        ("ingest GOOD a-file/out", "is a file. Choose another target"),
        ("ingest GOOD out --recipe misspelt.toml", "did you mean 'size'"),
        ("ingest GOOD out --recipe mistyped.toml", "size = '64' is not int"),
        ("ingest GOOD out --recipe missing.toml", "cannot read the recipe"),
        ("ingest GOOD out --split 0.9,0.2", "three shares"),
        ("ingest GOOD gs://bucket/out", "only folders and s3://"),
        ("train DATASET out --backbone resnet81", "did you mean resnet18"),
        ("train DATASET out --regime thawed", "choose frozen, last:N"),
        ("train nowhere out", "holds no dataset"),
        ("train DATASET a-file/out", "is a file"),
        ("label GOOD out --model nowhere@champion", "holds no model"),
        ("label GOOD out --model nowhere", "nowhere holds no model"),
        ("label nowhere out --model MODEL", "does not exist"),
        ("label GOOD - --model MODEL", "with a place for the predictions"),
        ("label GOOD DATASET --model MODEL", "holds a dataset, not predictions"),
        ("label nowhere.jpg - --model MODEL", "there is no picture"),
        ("label a-file - --model nowhere@champion", "holds no model"),
        ("submit ingest GOOD out", "after -- write one of"),
        ("submit -- ingest pictures out", "path on this machine"),
        ("submit -- train s3://b/d s3://b/m --backbone resnet81", "did you mean resnet18"),
        ("submit -- label s3://b/a s3://b/p --model models@champion", "path on this machine"),
        ("submit -- train s3://b/d s3://b/m --weights own.pth", "path on this machine"),
        ("submit -- ingest s3://b/a s3://b/d --labels labels.csv", "path on this machine"),
        (
            "submit -- label s3://b/a s3://b/p --model s3://b/m@1 --forecast f.json",
            "path on this machine",
        ),
        ("ingest GOOD out --labels folders", "ends in .csv, .tsv or .parquet"),
        ("ingest GOOD out --labels nowhere.csv", "there is no such table"),
        ("ingest GOOD out --split folder", "is not a split"),
        ("label nowhere.csv out --model MODEL", "there is no such table"),
        ("label GOOD out --model MODEL --forecast nowhere.json", "No such file"),
        ("plan label GOOD - --model MODEL", "one picture needs no plan"),
        ("plan bake GOOD out", "write afinar plan ingest"),
        ("plan --json label GOOD out --model MODEL", "write afinar plan ingest"),
        ("plan ingest one-class DATASET", "holds the pictures of"),
        ("train DATASET out --audit s3://b/audit", "--audit s3://b/audit: give a folder"),
        ("similar DATASET --workers -1", "--workers -1"),
        ("submit --verbose -- ingest s3://b/a s3://b/d", "no option --verbose"),
        ("submit -- ingest s3://b/a s3://b/d --labels labels.CSV", "path on this machine"),
        ("submit -- features data", "path on this machine"),
        ("submit -- features s3://b/d --weights own.pth", "path on this machine"),
        ("submit -- compare s3://b/d,data s3://b/r", "'data' is a path on this machine"),
        ("submit -- similar s3://b/d scan.jpg", "path on this machine"),
        ("submit -- evaluate s3://b/d --model models", "path on this machine"),
        ("compare a,b runs --publish best", "compare one DATASET"),
        ("status nowhere", "holds no dataset"),
        ("forget DATASET nothing.jpg", "nothing was erased"),
        ("demo .", "holds something else than a demo"),
        ("ingets a b", "unknown command 'ingets': do you mean ingest?"),
        ("frobnicate", "usage: afinar COMMAND"),
        ("train d m --lr 1e-3", "--lr is called --learning-rate here"),
        ("ingest a b --imgsz=64", "--imgsz is called --size here"),
    ],
)
def test_wrong_request_exits_2_with_its_message_before_torch_or_ray_is_imported(
    command: str, message: str, requests: dict[str, str], tmp_path: Path
) -> None:
    argv = (requests.get(word, word) for word in command.split())
    refusal = run_refused(*argv, cwd=tmp_path)
    assert refusal.code == 2
    assert message in refusal.stderr
    assert refusal.imported == []
    assert not (tmp_path / "out").exists()


def test_unknown_cut_is_refused_before_ray_is_imported(
    requests: dict[str, str], tmp_path: Path
) -> None:
    code, stderr, imported = run_refused(
        "train", requests["DATASET"], "out", "--cut", "layer9", cwd=tmp_path
    )
    assert (code, "ray" in imported) == (2, False)
    assert "--cut 'layer9' is no node" in stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_target_without_permission_is_refused(
    mode: int, requests: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=mode)
    code, stderr, _ = run_refused("ingest", requests["GOOD"], "locked/out", cwd=tmp_path)
    assert (code, "no permission" in stderr) == (2, True)


@pytest.mark.parametrize("where", ["nobucket", "closed"])
def test_s3_target_that_does_not_answer_is_refused(
    where: str,
    requests: dict[str, str],
    tmp_path: Path,
    s3_server: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if where == "closed":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    code, stderr, imported = run_refused(
        "ingest", requests["GOOD"], "s3://no-such-bucket/out", cwd=tmp_path
    )
    assert (code, imported) == (2, [])
    assert ("there is no such bucket" if where == "nobucket" else "Check the endpoint") in stderr


def test_wrong_credentials_are_reported_and_not_printed(
    requests: dict[str, str], tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    code, stderr, _ = run_refused("ingest", requests["GOOD"], f"{bucket}/out", cwd=tmp_path)
    assert code == 2
    assert "credentials" in stderr
    assert "not-the-secret" not in stderr


@pytest.mark.parametrize(
    "name", ["ingest", "train", "label", "plan", "status", "models", "forget", "demo", "submit"]
)
def test_help_of_each_command_has_an_example(name: str, tmp_path: Path) -> None:
    done = run_afinar(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"afinar {name}" in done.stdout
    assert "Example" in done.stdout


def test_version_and_help_of_a_command_are_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"afinar \d+\.\d+\.\d+\S*\n", capfd.readouterr().out)
    with pytest.raises(SystemExit) as ended:
        main(["help", "models"])
    assert ended.value.code == 0
    assert "usage: afinar models" in capfd.readouterr().out
    assert main(["help"]) == 0
    assert "usage: afinar COMMAND" in capfd.readouterr().out


def test_overview_names_every_command(tmp_path: Path) -> None:
    done = run_afinar("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert "130 interrupted" in done.stdout


@pytest.mark.parametrize(
    "command", ["ingest nowhere out --json", "ingest --json", "ingest --recipe asks-for-json.toml"]
)
def test_json_of_a_refusal_is_one_object(command: str, tmp_path: Path) -> None:
    (tmp_path / "asks-for-json.toml").write_text(
        'source = "nowhere"\ndataset = "out"\njson = true\n'
    )
    done = run_afinar(*command.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["exit_code"] == 2


def test_logging_flags_configure_the_log(tmp_path: Path) -> None:
    try:
        argv = ["status", str(tmp_path / "nowhere"), "--verbose", "--log-format", "json"]
        assert main(argv) == 2
        assert log_settings() == LogSettings(log_format="json", verbose=True)
    finally:
        configure_logging()


def test_control_characters_of_names_reach_no_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hostile = "a\x1b]0;owned\x07\nafinar: done\x9b31m\u202eb"
    for name in (hostile, "moss"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(4):
            picture = jpeg(number + 100 * (name == "moss"))
            (tmp_path / "source" / name / f"{number}.jpg").write_bytes(picture)
    dataset = str(tmp_path / "dataset")
    run_ingest(
        IngestConfig(source=str(tmp_path / "source"), dataset=dataset, size=16), InlineExecutor()
    )
    capfd.readouterr()

    assert main(["status", dataset]) == 0
    assert main(["status", dataset, "--json"]) == 0
    assert main(["status", str(tmp_path / hostile)]) == 2
    assert main([hostile]) == 2
    captured = capfd.readouterr()
    shown = captured.out + captured.err
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert not any(line.startswith("afinar: done") for line in shown.splitlines())
    assert shown.count(r"a\x1b]0;owned\x07\nafinar: done\x9b31m\u202eb") >= 2

    (summary,) = (line for line in captured.out.splitlines() if line.startswith("{"))
    assert set(json.loads(summary)["labels"]) == {hostile, "moss"}
