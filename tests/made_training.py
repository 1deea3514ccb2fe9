"""Small data sets in which only the motion, or only the look, tells the classes apart."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from made_records import write_record
from safetensors.torch import load_file

from flowkit.data.augment import Augmentation
from flowkit.data.frames import FrameForm
from flowkit.data.record_folders import RecordFolder
from flowkit.data.splits import Split, Video
from flowkit.data.stacks import StackForm
from flowkit.training.jobs import Job
from flowkit.training.recipes import Recipe
from flowkit.training.sampling import Task

SIZE = (36, 44)  # (H, W) of the records
FIELDS = 5
CLASSES = ("grow", "shrink", "spin")  # none is another one's mirror image
CROP = Augmentation(crop=32, short_side=36)


def write_videos(
    root: Path,
    *,
    told_by: str = "motion",
    per_class: int = 4,
    classes: tuple[str, ...] = CLASSES,
    seed: int = 0,
    **storage: object,
) -> RecordFolder:
    """Records ``root/<class>/v<k>``: "motion" or "look" tells the class, the other is random."""
    random = np.random.default_rng((seed, told_by == "motion"))
    for label, name in enumerate(classes):
        for number in range(per_class):
            motion, look = random.integers(len(CLASSES), size=2)
            if told_by == "motion":
                motion = label % len(CLASSES)
            else:
                look = label % len(CLASSES)
            fields = np.stack([_field(motion, random) for _ in range(FIELDS)])
            frames = np.stack([_frame(look, random) for _ in range(FIELDS + 1)])
            write_record(root, f"{name}/v{number}", fields, frames=frames, **storage)
    return RecordFolder(root)


def make_split(
    per_class: int = 4, heldout: int = 1, classes: tuple[str, ...] = CLASSES, test: int = 0
) -> Split:
    """The last `test` videos of every class test, those before are held out, the first train."""
    parts: dict[str, list[Video]] = {"train": [], "heldout": [], "test": []}
    for name in classes:
        for number in range(per_class):
            left = per_class - number
            part = "test" if left <= test else "heldout" if left <= test + heldout else "train"
            parts[part].append(Video(f"{name}/v{number}", name, f"v{number}"))
    return Split("made", classes, *(tuple(parts[part]) for part in ("train", "heldout", "test")))


def make_job(records: RecordFolder, split: Split | None = None, **options: object) -> Job:
    """A job of the small network on L = 2 stacks, or on `frames`, or ``stream="spatial"``."""
    numbers = {"steps": 6, "batch_size": 8, "drop_at": (4,), "eval_every": 2, "dropout": 0.5}
    recipe = Recipe(**numbers | options.pop("recipe", {}))
    task = Task("main", split or make_split(), records)
    frames = options.pop("frames", FrameForm() if options.pop("stream", "") == "spatial" else None)
    inputs = {"spatial": frames} if frames else {"temporal": StackForm(2)}
    given = {"tasks": (task,), "inputs": inputs, "augmentation": CROP, "eval_moments": 2, **options}
    return Job(net=given.pop("net", "small"), recipe=recipe, **given)


def run_two_processes(
    records: RecordFolder, out: Path, net: str, *sources: str
) -> list[dict[str, torch.Tensor]]:
    """The tensors that each of two processes has at the end; the run's checkpoint is in `out`.

    With `sources` they are of towers joined from two runs.
    """
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--standalone", str(script)]
    done = subprocess.run(
        [*command, str(records.root), str(out), net, *sources],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return [load_file(out / f"rank{rank}.safetensors") for rank in (0, 1)]


def _field(motion: int, random: np.random.Generator) -> np.ndarray:
    """Growing, shrinking or turning about some point, float32 (H, W, 2), with some noise."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] - random.uniform((12, 15), (24, 29))[:, None, None]
    speed = random.uniform(0.05, 0.15)
    match motion:
        case 0:
            pair = x * speed, y * speed
        case 1:
            pair = -x * speed, -y * speed
        case _:
            sign = random.choice((-1, 1))
            pair = -y * speed * sign, x * speed * sign
    noise = random.normal(0, 0.2, (*SIZE, 2))
    return (np.stack(pair, axis=2) + noise).astype(np.float32)


def _frame(look: int, random: np.random.Generator) -> np.ndarray:
    """Gray noise with one of three color casts, uint8 (H, W, 3)."""
    frame = np.repeat(random.uniform(40, 160, (*SIZE, 1)), 3, axis=2)
    frame[..., look] += 60
    return frame.astype(np.uint8)
