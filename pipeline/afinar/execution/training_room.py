"""Room for several trainings at a time: the connection to a cluster that they share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from afinar.config.base import ClusterJobConfig, cluster_address
from afinar.execution.choice import ONE_TRAINING, TrainingRoom, choose_training_room


@contextlib.contextmanager
def open_training_room(config: ClusterJobConfig) -> Iterator[TrainingRoom]:
    """Connect to the cluster of a job, if it has one, and yield what it has room for now.

    Without a cluster each training chooses where it runs, one after the other.
    """
    if cluster_address(config.address) is None:
        yield ONE_TRAINING
        return

    from afinar.execution.session import cluster_cores, cluster_gpus, free_share, ray_session

    with ray_session(config.address, dashboard=True):
        cores = int(cluster_cores() * free_share())
        yield choose_training_room(workers=config.workers, cores=cores, gpus=cluster_gpus())
