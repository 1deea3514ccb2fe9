"""Trains a small job in the processes of torchrun and writes the weights of each.

usage: torchrun --nproc-per-node 2 two_processes.py RECORDS OUT [BATCH]
"""

import sys
from pathlib import Path

import torch
from made_training import make_job
from safetensors.torch import save_file

from flowkit.data.record_folders import RecordFolder
from flowkit.training.distributed import join_ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit.training.trainer import Training


def main(records: str, out: str) -> None:
    """Three steps of a batch of 7, so that shares differ, in passes of 2 clips."""
    torch.set_num_threads(1)
    recipe = {"steps": 3, "batch_size": 7, "dropout": 0.0, "eval_every": 3}
    job = make_job(RecordFolder(Path(records)), recipe=recipe)
    with join_ranks("cpu") as ranks:
        machine = Machine(micro_batch=2)
        for _ in train(job, Path(out), ranks, machine):
            pass
        training = Training(job, ranks, machine)
        with training.loader() as batches:
            for _ in range(3):
                training.take_step(batches)
        save_file(training.net.state_dict(), Path(out) / f"rank{ranks.rank}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
