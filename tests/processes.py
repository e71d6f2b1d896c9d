"""Runs several small pretraining jobs as one of several processes. Started by test_processes.py."""

import json
import sys

import small

from nepa_jax.hosts import start as distributed
from nepa_jax.train import pretrain


def main(jobs: str, coordinator: str, processes: str, process: str) -> None:
    distributed.start(coordinator, int(processes), int(process))
    with distributed.failing_together():
        for job in json.loads(jobs):
            pretrain(small.config(job["method"], job["data"], **job["changes"]), job["workdir"])


if __name__ == "__main__":
    main(*sys.argv[1:])
