"""The finished rows of reproduce.py as a table and a picture, the paper's figures beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from clips import write_json
from reproduce_cells import (
    CELLS,
    FUSED,
    HMAX_CELLS,
    RAFT_NEEDS,
    RAFT_ROW,
    STREAM_CELLS,
    TOWER_CELLS,
    TOWER_STREAMS,
    TOWERS_IDT,
    TRAJECTORY_CELLS,
    WITH_IDT,
)

from flowkit.report.figures import mcnemar
from flowkit.scores.files import Scores, read_scores


def read_cells(results: Path, runs: Path) -> Iterator[dict[str, Any]]:
    """The finished cells in the order of the tables, each compared with the one above it.

    Those of segments are compared with the same stream's without, joined towers with the average of
    the two streams that they are made of, and with trajectories with the same towers alone.
    """
    names = [name for name in CELLS if name not in TOWER_STREAMS[:1]]
    names += [f"{prefix}fused-{name}" for prefix in ("", "60-passes-") for name in FUSED]
    names += [*TRAJECTORY_CELLS, *HMAX_CELLS]
    names += [
        TOWER_STREAMS[0],
        *(f"towers-fused-{name}" for name in FUSED),
        *TOWER_CELLS,
        TOWERS_IDT,
    ]
    names += sorted(f.stem for f in results.glob("flow-*.json"))
    above: Scores | None = None
    table = ""
    for name in names:
        file = results / f"{name}.json"
        if not file.exists():
            continue
        cell = json.loads(file.read_text())
        if cell["table"] == "segments":
            above, table = read_test(runs, STREAM_CELLS[cell["stream"]]), "segments"
        if name in TOWER_CELLS:
            above, table = read_test(runs, "towers-fused-average"), "2016"
        if name == TOWERS_IDT:
            above = read_test(runs, WITH_IDT)
        own = read_test(runs, name)
        if own is not None and above is not None and cell["table"] == table:
            mine, theirs = (s.values.argmax(1) == s.labels for s in (own, above))
            cell["mcnemar_p"] = round(
                mcnemar(int((mine & ~theirs).sum()), int((theirs & ~mine).sum())), 3
            )
            write_json(file, cell)
        above, table = own, cell["table"]
        yield cell


def read_test(runs: Path, name: str) -> Scores | None:
    """The scores of a run's test videos, None where they are not here."""
    file = runs / name / "scores-test.npz"
    return read_scores(file) if file.exists() else None


def table_of(cells: list[dict[str, Any]]) -> str:
    """The cells as Markdown, the paper's figures beside them."""
    lines = [
        "| table | row | network | input, px | trained on | test accuracy | 95% | held out | "
        "p against the row above | paper, UCF-101 split 1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        low, high = (100 * one for one in cell["test"]["interval_95"])
        heldout = cell.get("heldout")
        told = f"{100 * heldout['accuracy']:.1f} of {heldout['videos']}" if heldout else ""
        chance = "< 0.001" if cell.get("mcnemar_p") == 0 else cell.get("mcnemar_p", "")
        lines.append(
            f"| {cell['table']} | {row_name(cell)} | {cell.get('net', '')} | "
            f"{cell.get('input_px', '')} | {cell.get('device', '')} | "
            f"{100 * cell['test']['accuracy']:.1f} | {low:.1f} to {high:.1f} | {told} | "
            f"{chance} | {cell['paper']} |"
        )
    if not any(cell["cell"] == RAFT_ROW[0] for cell in cells):
        lines.append("| {} | {} |  |  |  | {} |  |  |  |  |".format(*RAFT_ROW[1:], RAFT_NEEDS))
    return "\n".join(lines) + "\n"


def minutes_of(cells: list[dict[str, Any]]) -> str:
    """How long the rows of each table took, and of how many that is known."""
    told = []
    for table in dict.fromkeys(cell["table"] for cell in cells if "seconds" in cell):
        rows = [cell for cell in cells if cell["table"] == table and "seconds" in cell]
        told.append(f"{table} {sum(cell['seconds'] for cell in rows) / 60:.0f} ({len(rows)} rows)")
    return f"Minutes, training, features and scores: {', '.join(told)}."


def row_name(cell: dict[str, Any]) -> str:
    """A row in words, its stream first."""
    whole = cell["stream"] in ("fused", "towers", "hmax")
    return cell["row"] if whole else f"{cell['stream']}, {cell['row']}"


def picture_of(cells: list[dict[str, Any]]) -> str:
    """The table as SVG: accuracies on their 95% intervals, the paper's figures as open circles."""
    left, width, row_height, top = 430, 400, 22, 34  # px
    low = min(cell["test"]["interval_95"][0] for cell in cells)
    first = int(10 * low) / 10  # of the axis, which ends at 1

    def x(share: float) -> str:
        return f"{left + width * (share - first) / (1 - first):.1f}"

    height = top + row_height * len(cells) + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 70}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="13" fill="#16202c">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="20">top-1 of test videos, 95%; open: the paper on UCF-101</text>'
    ]
    for tenth in range(round(10 * first), 11):
        parts.append(
            f'<line x1="{x(tenth / 10)}" x2="{x(tenth / 10)}" y1="{top - 6}" y2="{height - 8}" '
            f'stroke="#dfe4ea"/><text x="{x(tenth / 10)}" y="20" text-anchor="middle">'
            f"{10 * tenth}%</text>"
        )
    for number, cell in enumerate(cells):
        y, share = top + row_height * (number + 0.5), cell["test"]["accuracy"]
        ends = [x(one) for one in cell["test"]["interval_95"]]
        paper = cell["paper"].partition(" ")[0]
        parts.append(
            f'<text x="8" y="{y + 4}">{escape(cell["table"])}</text>'
            f'<text x="{left - 14}" y="{y + 4}" text-anchor="end">{escape(row_name(cell))}</text>'
            f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y}" y2="{y}" stroke="#0a8f78" '
            f'stroke-width="2"/><circle cx="{x(share)}" cy="{y}" r="4.5" fill="#0a8f78"/>'
            f'<text x="{left + width + 14}" y="{y + 4}">{100 * share:.1f}</text>'
        )
        if paper:
            parts.append(
                f'<circle cx="{x(float(paper) / 100)}" cy="{y}" r="4" fill="none" '
                'stroke="#5b6775" stroke-width="1.5"/>'
            )
    return "".join(parts) + "</svg>\n"
