"""Decode every real clip whose true number of frames is known, and check the account of each.

    python benchmarks/check_clips.py [DATA]

DATA (default: $FLOWKIT_DATA, else ../shared/data beside the checkout) holds jhmdb10/clips.csv and
ucf101/clips.csv with the column decoded_frames. All these clips are intact: one that is called
damaged is a false alarm. Exit status 1 if there is one, or a wrong count, or no clip at all.
"""

from __future__ import annotations

import csv
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from flowkit.errors import VideoError
from flowkit.video.reading import open_video

PROCESSES = 2


def clips_of(data: Path) -> list[tuple[Path, int]]:
    """Every clip that the tables list, with its true number of frames."""
    clips = []
    for table in (data / "jhmdb10" / "clips.csv", data / "ucf101" / "clips.csv"):
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                path = table.parent / row["file"]
                if not path.exists():  # jhmdb10 names the class in a column of its own
                    path = table.parent / row["class"] / row["file"]
                clips.append((path, int(row["decoded_frames"])))
    return clips


def check(clip: tuple[Path, int]) -> tuple[int, str]:
    """The frames decoded, and what is wrong with them in a line, or ""."""
    path, expected = clip
    try:
        with open_video(path, keep_damaged=True) as video:
            decoded = sum(1 for _ in video.frames())
    except VideoError as error:
        return 0, f"false alarm: {error}"
    if video.damage:
        return decoded, f"false alarm: {path}: {video.damage}"
    if decoded != expected or video.account != (expected, expected):
        return decoded, f"wrong count: {path}: expected {expected} frames, got {video.account}"
    return decoded, ""


def main() -> int:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    data = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FLOWKIT_DATA", beside))
    try:
        clips = clips_of(data)
    except OSError as error:
        print(f"{error}: name the folder of real clips, or set FLOWKIT_DATA to it", file=sys.stderr)
        return 1
    start = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES) as pool:
        results = list(pool.map(check, clips, chunksize=8))
    seconds = time.perf_counter() - start
    complaints = [words for _, words in results if words]
    print(*complaints, sep="\n", end="\n" if complaints else "")
    alarms = sum(words.startswith("false alarm") for words in complaints)
    frames = sum(decoded for decoded, _ in results)
    print(
        f"{len(clips)} clips, {frames} frames: {alarms} false alarms, "
        f"{len(complaints) - alarms} wrong counts, {seconds:.1f} s with {PROCESSES} processes"
    )
    return 1 if complaints or not clips else 0


if __name__ == "__main__":
    sys.exit(main())
