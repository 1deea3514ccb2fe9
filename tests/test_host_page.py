"""The table of what the cores do, and what is reckoned from it: benchmarks/host.py, docs/gpu.md."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

import host  # noqa: E402
import loader  # noqa: E402


def report(scale: float) -> dict:
    return {
        "bytes_a_plane": 2000,
        "load_average": [0.5, 2.0],
        "start": {"a command": 0.5 * scale},
        "whole frame": {"extract --gpu": 4.0 * scale, "extract --gpu --pack": 2.0 * scale},
        "frame": {},
        "clip": {f"{store}: {host.WORKER}": 2.5 * scale for store in loader.STORES},
    }


def test_what_cores_can_do_is_reckoned_from_the_table():
    """16 cores at 2 ms make 8,000 a second, and 3,000 keep 6 of them busy."""
    told = host.table(report(1.0))
    assert told.startswith("| | processor time, load 0.5 to 2.0 |\n|---|---|\n")
    assert "| start: a command | 0.5 s |\n" in told
    assert "* 4,000 frames/s to folders\n" in told
    assert "* 8,000 frames/s to packs; 3,000 take 6.0 cores\n" in told
    assert "* 6,400 clips/s of 20 planes from jpg packs; 3,600 take 9.0 cores\n" in told


def test_a_busy_machine_has_a_column_of_its_own():
    told = host.table(report(1.0), report(2.0))
    assert "| start: a command | 0.5 s | 1.0 s |\n" in told
    assert "* 8,000 to 4,000 frames/s to packs; 3,000 take 6.0 to 12.0 cores\n" in told


def test_the_docs_have_the_table_of_the_stored_reports(tmp_path):
    page = tmp_path / "gpu.md"
    shutil.copyfile(ROOT / "docs" / "gpu.md", page)
    host.write_page(page)
    assert page.read_text() == (ROOT / "docs" / "gpu.md").read_text(), (
        "python benchmarks/host.py --page docs/gpu.md"
    )
