"""One worker of a training under torchrun: the function that Ray Train runs, without Ray."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from afinar.config.train import TrainConfig
from afinar.training.distributed import Group
from afinar.training.task import plan_training
from afinar.training.worker import train


def main(request: dict[str, Any]) -> None:
    """Join the group, plan, and train. Rank 0 prints the folder of the run.

    The ranks plan one after the other, since planning writes to the store to probe it.
    """
    dist.init_process_group("gloo")
    group = Group()
    config = config_of(request)
    tasks = []
    for rank in range(group.size):
        if rank == group.rank:
            tasks.append(plan_training(config, request["run"]))
        dist.barrier()
    train(tasks[0], group)
    if group.is_rank_zero:
        print(
            json.dumps(
                {
                    "run": f"{request['models']}/runs/{request['run']}",
                    "threads": torch.get_num_threads(),
                }
            )
        )
    dist.barrier()
    dist.destroy_process_group()


def config_of(request: dict[str, Any]) -> TrainConfig:
    """Return the configuration of the flags of a command."""
    flags = {name.replace("-", "_"): value for name, value in request["flags"].items()}
    return TrainConfig(
        dataset=request["dataset"], models=request["models"], workers=request["workers"], **flags
    )


if __name__ == "__main__":
    assert int(os.environ["WORLD_SIZE"]) == json.loads(sys.argv[1])["workers"]
    main(json.loads(sys.argv[1]))
