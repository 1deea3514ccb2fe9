"""The memory of `predict --timeline` over a long video: after its first minute it stays.

    python benchmarks/timeline.py [--minutes 60]

Makes a video of so many minutes and two fresh streams, predicts its windows, and prints the memory
of the process and of its child, which decodes (resident, by /proc), at the end of the first minute
and at most afterwards.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flowkit.data.frames import FrameForm
from flowkit.data.stacks import StackForm
from flowkit.evaluation.held_windows import Spans
from flowkit.evaluation.prediction import Predictor
from flowkit.evaluation.scoring import Scorer, TestViews
from flowkit.evaluation.timeline import predict_windows
from flowkit.flow.methods import describe_method, make_method
from flowkit.networks.checkpoints import BEST, LAST, Checkpoint, write_checkpoint
from flowkit.networks.towers import make_net
from flowkit.scores.fusion import Fusion
from flowkit.video.writing import write_video

RATE, SIZE = 10, (40, 48)  # frames/s; (H, W), px
CLASSES = ("grow", "shrink", "spin")


def main() -> None:
    """Make the video and the streams, predict, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "long.mp4")
        write_video(video, made_frames(round(60 * minutes * RATE)), fps=RATE, codec="mpeg4")
        scorers = {
            name: Scorer(write_run(Path(folder, name), form), views=TestViews(2, "center"))
            for name, form in (("spatial", FrameForm()), ("temporal", StackForm(5)))
        }
        begin, first, most, windows = processor_s(), 0.0, 0.0, 0
        for window in predict_windows(Predictor(scorers, Fusion("average")), video, Spans()):
            windows += 1
            if window.end_s <= 60:
                first = resident_mb()
            most = max(most, resident_mb())
        print(
            f"{minutes:g} min of video, {windows:,} windows in {processor_s() - begin:.0f} s "
            f"of processor time: {first:.1f} MB at the end of the first minute, {most:.1f} MB at "
            f"most: {most / first - 1:+.1%}"
        )


def made_frames(count: int) -> Iterator[np.ndarray]:
    """Frames of a texture that wanders, uint8 (H, W, 3)."""
    texture = np.random.default_rng(0).integers(0, 255, (90, 110, 3), dtype=np.uint8)
    for k in range(count):
        left, top = k % 60, (k // 3) % 45
        yield np.ascontiguousarray(texture[top : top + SIZE[0], left : left + SIZE[1]])


def write_run(folder: Path, form: FrameForm | StackForm) -> Path:
    """The run of a small stream of fresh weights."""
    is_flow = isinstance(form, StackForm)
    inputs = {"temporal" if is_flow else "spatial": form}
    flow = {"method": describe_method(make_method("dis")), "resize": None, "bound": None}
    flow |= {"format": "jpg", "quality": 90}
    told = flow if is_flow else None
    checkpoint = Checkpoint(1, "small", inputs, 0.5, {"main": CLASSES}, 36, 32, told)
    net = make_net("small", inputs, {"main": len(CLASSES)}, None, seed=0)
    write_checkpoint(folder, [BEST, LAST], checkpoint, net.state_dict(), {})
    return folder


def resident_mb() -> float:
    """The memory of this process and its children, MB."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    pages = [
        int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
        for process in ("self", *children)
    ]
    return sum(pages) * 4096 / 1e6


def processor_s() -> float:
    """The processor time of this process and of the children that have ended."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
