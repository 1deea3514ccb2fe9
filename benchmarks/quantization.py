"""What quantization and JPEG cost: bytes per plane and error in px after the round trip.

usage: python benchmarks/quantization.py [VIDEO_OR_FOLDER] [--method tvl1] [--fields 40]

Prints a table of mean, 99th percentile and worst error by scheme and quality, over fields of real
clips, and the share of still pixels (below 0.05 px) that come back below 0.01 px.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from clips import default_data, run_benchmark

from flowkit.extraction.extract import video_fields
from flowkit.flow.methods import make_method, methods_on
from flowkit.records.formats import decode_field, encode_field
from flowkit.video.sources import find_videos

CLIPS = 8  # equally spaced among those found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="?", default=default_data() / "ucf101", type=Path)
    parser.add_argument("--method", default="tvl1", choices=methods_on("cpu"))
    parser.add_argument("--fields", type=int, default=40)
    options = parser.parse_args()

    sources = find_videos([options.videos]).sources
    chosen = sources[:: max(len(sources) // CLIPS, 1)][:CLIPS]
    each = -(-options.fields // len(chosen))
    fields = [
        field
        for source in chosen
        for field in itertools.islice(
            video_fields(source.path, make_method(options.method), resize="340x256"), each
        )
    ]
    print(f"{len(fields)} fields of {len(chosen)} clips, {options.method}, 340x256")
    print("| scheme | format | kB a plane | mean px | p99 px | worst px | still stays still |")
    print("|---|---|---|---|---|---|---|")
    for bound in (None, 20.0):
        for format, quality in [("png", 90), ("jpg", 95), ("jpg", 90), ("jpg", 85), ("jpg", 75)]:
            errors, still, size = [], [], 0
            for field in fields:
                files, ranges = encode_field(field, format, bound=bound, quality=quality)
                size += sum(map(len, files))
                size_px, names = field.shape[:2], ["x", "y"]
                back = decode_field(files, format, size_px, np.array(ranges), where=names)
                errors.append(np.abs(back - field).ravel())
                still.append(np.abs(back[np.abs(field) < 0.05]) < 0.01)
            error = np.concatenate(errors)
            scheme = "own range" if bound is None else f"bound {bound:g}"
            print(
                f"| {scheme} | {format}{f' q{quality}' if format == 'jpg' else ''} "
                f"| {size / 2000 / len(fields):.1f} | {error.mean():.3f} "
                f"| {np.percentile(error, 99):.2f} | {error.max():.2f} "
                f"| {100 * np.concatenate(still).mean():.0f}% |"
            )


if __name__ == "__main__":
    run_benchmark(main)
