"""Collective operations, on worker processes that communicate through gloo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from afinar.training.distributed import Group
from tests.gloo import run_in_group


def collect(group: Group) -> dict[str, Any]:
    rank = group.rank
    columns = torch.arange(2 * rank).reshape(2, rank) + 10 * rank  # rank 0 has none
    return {
        "sum": group.all_reduce_sum(torch.tensor([rank, 1])).tolist(),
        "gathered": group.all_gather(columns).tolist(),
        "all_true": [group.all_true(True), group.all_true(rank == 0)],
        "all_equal": [group.all_equal(7), group.all_equal(rank)],
    }


def _collect(rank: int, folder: str) -> None:
    Path(folder, str(rank)).write_text(json.dumps(collect(Group())))


def test_collectives_give_the_same_result_on_every_worker(tmp_path: Path) -> None:
    run_in_group(3, _collect, str(tmp_path))
    for rank in range(3):
        assert json.loads((tmp_path / str(rank)).read_text()) == {
            "sum": [3, 3],
            "gathered": [[10, 20, 21], [11, 22, 23]],
            "all_true": [True, False],
            "all_equal": [True, False],
        }


def test_a_group_of_one_gathers_its_own_columns() -> None:
    assert Group().all_gather(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]
    assert Group().is_rank_zero
