"""Clips a second of a training: of the loader alone, of the network alone, and of both together.

usage: python benchmarks/training.py [RECORDS] [--device cuda] [--net cnn-m-2048] [--workers 8]
                                     [--batch 256] [--steps 20] [--format jpg] [--trace FILE.json]
                                     [--out FILE.json]

The records of a folder, or made ones of 256x340 px; L = 10, crop 224. The network alone is fed one
random batch that lies on the device already; the share says how much of that rate the real loader
keeps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from clips import run_benchmark

from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.records.layout import Storage
from flowkit.records.writing import RecordWriter
from flowkit.series import Series
from flowkit.training.distributed import Ranks, choose_device
from flowkit.training.jobs import Job, Machine
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task
from flowkit.training.trainer import Training, prepare

SIZE, FIELDS, VIDEOS = (256, 340), 20, 16
GRID, NOISE = (4, 6), 0.02  # of made fields: planes of 5 KB, as TV-L1's have with their own ranges
CLASSES = ("a", "b")
WARM_UP = 2  # steps that do not count


def write_records(root: Path, format: str) -> RecordFolder:
    """Smooth fields of a few px under little noise, whose planes are as large as real flow's."""
    random = np.random.default_rng(0)
    one = Series("forward", 1)
    for number in range(VIDEOS):
        coarse = torch.from_numpy(random.normal(0, 3, (FIELDS, 2, *GRID)))
        fields = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear")
        fields = fields.permute(0, 2, 3, 1).numpy() + random.normal(0, NOISE, (FIELDS, *SIZE, 2))
        id = f"{CLASSES[number % 2]}/v{number}"
        with RecordWriter(root, id, Storage(format=format, rgb=False), (one,)) as writer:
            for _ in range(FIELDS + 1):
                writer.add_frame(np.zeros((*SIZE, 3), np.uint8))
            for field in fields.astype(np.float32):
                writer.add_field(one, field)
            writer.commit({"request": {"format": format}, "fps": 25.0})
    return RecordFolder(root)


def rates(training: Training, steps: int, trace: Path | None) -> dict[str, float]:
    """Clips a second of the loader, the inputs made of its planes, the network, and all of it.

    One after another; then three steps are written to `trace`, for chrome://tracing. Loaded are
    planes or, of records that hold floats, stacks.
    """
    batch_size, device = training.job.recipe.batch_size, training.ranks.device
    passes = training.passes

    def seconds(act: object) -> float:
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    found = {}
    with training.loaders.passes.reading(training.batches) as batches:
        times = [
            seconds(lambda: [next(batches) for _ in range(passes)]) for _ in range(WARM_UP + steps)
        ]
        found["loader alone"] = batch_size * steps / sum(times[WARM_UP:])
        batch = next(batches)
        times = [seconds(lambda: training._to_device(batch)) for _ in range(WARM_UP + steps)]
        found["inputs alone"] = training.micro_batch * steps / sum(times[WARM_UP:])
        fixed = training._to_device(batch)
    again = iter(lambda: fixed, None)
    times = [seconds(lambda: training.take_step(again)) for _ in range(WARM_UP + steps)]
    found["network alone"] = batch_size * steps / sum(times[WARM_UP:])
    with training.loader() as batches:
        times = [seconds(lambda: training.take_step(batches)) for _ in range(WARM_UP + steps)]
        if trace:
            with torch.profiler.profile() as profile:
                for _ in range(3):
                    training.take_step(batches)
            profile.export_chrome_trace(str(trace))
    found["together"] = batch_size * steps / sum(times[WARM_UP:])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="?")
    parser.add_argument("--device")
    parser.add_argument("--net", default="cnn-m-2048")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--format", default="jpg")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        given = options.records and RecordFolder(options.records)
        records = given or write_records(Path(folder), options.format)
        ids = sorted(records.find())
        videos = tuple(Video(id, CLASSES[place % 2], id) for place, id in enumerate(ids))
        job = Job(
            {"temporal": StackForm(10)},
            options.net,
            (Task("main", Split("made", CLASSES, videos, (), ()), records),),
            Recipe(steps=10**6, batch_size=options.batch, learning_rate=1e-6),
        )
        machine = Machine(
            workers=options.workers, bf16=options.bf16, channels_last=options.channels_last
        )
        with closing(prepare(job, Ranks(0, 1, device), machine)) as training:
            found = rates(training, options.steps, options.trace)
    result = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "net": options.net,
        "records": str(options.records or f"made, {options.format}"),
        "batch": options.batch,
        "clips_a_pass": training.micro_batch,
        "workers": options.workers,
        "bf16": options.bf16,
        "clips_a_second": {name: round(rate, 2) for name, rate in found.items()},
        "share_of_network": round(found["together"] / found["network alone"], 3),
    }
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    run_benchmark(main)
