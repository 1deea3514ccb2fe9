"""What `flowkit stats` takes for as many records as UCF-101 has, of which there are sidecars only.

    python benchmarks/stats.py [--records 13320]

Prints the wall clock and the processor time of the command, page included.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from flowkit.documents import SIDECAR
from flowkit.records.layout import Storage
from flowkit.records.writing import RecordWriter
from flowkit.series import Series

RECORDS, CLASSES, FRAMES = 13_320, 101, 186  # of UCF-101; frames of the mean video
SIZE = (8, 10)  # px, of fields that nobody reads
LINKED = 10  # records made; the others are further names of their sidecars


def main() -> None:
    """Make the sidecars, run the command, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=RECORDS)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        flow = Path(folder, "flow")
        make_sidecars(flow, count)
        size = sum(file.stat().st_size for file in flow.rglob(SIDECAR))
        page = Path(folder, "stats.html")
        command = [sys.executable, "-m", "flowkit", "stats", str(flow), "-j", "1"]
        begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*command, "--html", str(page)], check=True, stdout=subprocess.DEVNULL)
        took, after = time.monotonic() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(
            f"{count:,} records, {size / 1e6:.0f} MB of sidecars: {took:.1f} s of wall clock, "
            f"{used:.1f} s of processor time, in one process; a page of "
            f"{page.stat().st_size / 1e3:.0f} kB"
        )


def make_sidecars(flow: Path, count: int) -> None:
    """`count` records below `flow` that are a sidecar each."""
    series, random = Series("forward", 1), np.random.default_rng(0)
    for number in range(count):
        place = flow / f"class_{number % CLASSES:03}" / f"v_{number:05}"
        if number < LINKED:
            with RecordWriter(flow, f"made/{number}", Storage("png"), (series,)) as writer:
                for frame in np.zeros((FRAMES, *SIZE, 3), np.uint8):
                    writer.add_frame(frame)
                for field in random.normal(0, 3, (FRAMES - 1, *SIZE, 2)).astype(np.float32):
                    writer.add_field(series, field)
                writer.commit({"request": Storage("png").identity(), "fps": 25.0})
        place.mkdir(parents=True)
        os.link(flow / f"made/{number % LINKED}" / SIDECAR, place / SIDECAR)
    shutil.rmtree(flow / "made")


if __name__ == "__main__":
    main()
