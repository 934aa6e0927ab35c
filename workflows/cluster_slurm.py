"""Ask SLURM for Dask workers with a GPU each, as many as there is work for, and keep asking until interrupted.

Needs dask-jobqueue (pip install dask-jobqueue) and a file system that all nodes share; workflows/cluster.md says how to
use it. Queues, memory and times are a site's own: change them here.
"""

from __future__ import annotations

import argparse
import time

from dask_jobqueue import SLURMCluster

__all__ = ["main"]

_CORES = 8


def main() -> None:
    """Start a scheduler in this process, print how to use it, and let its jobs come and go with the work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=8, help="at most so many at a time, of one GPU each (%(default)s)")
    parser.add_argument("--queue", default="gpu", help="SLURM partition (%(default)s)")
    parser.add_argument("--account", help="whom SLURM bills")
    options = parser.parse_args()
    with SLURMCluster(
        queue=options.queue,
        account=options.account,
        cores=_CORES,
        processes=1,
        memory="64GB",
        walltime="04:00:00",
        job_extra_directives=["--gpus=1"],
        # torch takes the job's cores, and Dask does not stop a worker for ever whose teacher fills most of its memory.
        job_script_prologue=[
            f"export OMP_NUM_THREADS={_CORES}",
            "export DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False",
        ],
        # One shard at a time; each worker ends between two shards, well before SLURM would end it within one.
        worker_extra_args=["--nthreads=1", "--resources", "GPU=1", "--lifetime", "220m", "--lifetime-stagger", "10m"],
    ) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=options.jobs)
        print(f"sak extract RECIPE --scheduler {cluster.scheduler_address} --gpu-workers", flush=True)
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
