"""Trains a small job in the processes of torchrun and writes the weights of each.

usage: torchrun --nproc-per-node 2 two_processes.py RECORDS OUT NET [SPATIAL TEMPORAL]
"""

import sys
from contextlib import closing
from pathlib import Path

from made_training import make_job
from safetensors.torch import save_file

from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.stacks import StackForm
from flowkit.networks.joining import Towers
from flowkit.training.distributed import join_ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train
from flowkit.training.trainer import prepare


def main(records: str, out: str, net: str, *sources: str) -> None:
    """Three steps in passes of 2 clips, of a batch of 7, so that shares differ.

    Networks with batch normalization need two clips in every pass, and get a batch of 8. With
    sources two towers are joined.
    """
    recipe = {"steps": 3, "batch_size": 7 if "small" in net else 8, "dropout": 0.0, "eval_every": 3}
    options = {}
    if sources:
        towers = Towers(frames=2, gap=(1, 2), over_time="conv3d", keep="temporal")
        inputs = {"spatial": FrameForm(), "temporal": StackForm(2)}
        options = {"inputs": inputs, "weights": sources, "towers": towers}
        recipe["mode"] = "top"
    if ":" in net:
        options["own"] = net
    job = make_job(RecordFolder(Path(records)), recipe=recipe, net=net, **options)
    with join_ranks("cpu") as ranks:
        machine = Machine(micro_batch=2)
        for _ in train(job, Path(out), ranks, machine):
            pass
        with closing(prepare(job, ranks, machine)) as training, training.loader() as batches:
            for _ in range(3):
                training.take_step(batches)
        own = Path(out) / f"rank{ranks.rank}.safetensors"
        save_file(training.net.state_dict(), own)  # its own batch statistics with it


if __name__ == "__main__":
    main(*sys.argv[1:])
