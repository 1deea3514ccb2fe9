"""The results of mutation.py as they are kept, and as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mutation_edits import Mutant

EQUIVALENT = Path(__file__).with_name("mutation_equivalent.json")


def results_in(work: Path) -> dict[str, dict[str, Any]]:
    """The last result of each mutant, by its name."""
    path = work / "mutants.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def table(work: Path, drawn: list[Mutant]) -> str:
    """What was seen of the mutants drawn, as Markdown: in all, by part and operator, and each."""
    results, proven = results_in(work), json.loads(EQUIVALENT.read_text())
    rows = [results[mutant.name] for mutant in drawn if mutant.name in results]
    counted = [row for row in rows if row["name"] not in proven]
    first = sum(row["first"] for row in counted)
    lines = [
        "# Mutants of training, scoring, stacks, fusion and records",
        "",
        f"Written by `python benchmarks/mutation.py`: {len(rows)} mutants of the sources at "
        f"{(work / 'commit.txt').read_text()[:7]}, {len(rows) - len(counted)} of them proven "
        f"equivalent. Killed: **{summary(counted)}**, {first} of them in the first run, by the "
        "fastest tests, before tests were added for those that survived it; "
        f"{sum(row['how'] == 'hung' for row in counted)} by the time limit.",
        "",
        "| | killed |",
        "|---|---|",
    ]
    for field in ("part", "operator"):
        for value in sorted({row[field] for row in counted}):
            lines.append(f"| {value} | {summary([r for r in counted if r[field] == value])} |")
    lines += ["", "Killed by: the first test that failed, the fastest tests first.", ""]
    lines += ["| place | operator | was | became | killed by |", "|---|---|---|---|---|"]
    for row in sorted(counted, key=lambda row: (row["path"], row["line"], row["column"])):
        by = row["by"] or f"**survived** {row['ran']} tests"
        cells = f"`{cell(row['old'])}` | `{cell(row['text'])}` | {cell(by.removeprefix('tests/'))}"
        how = {"hung": " (time limit)", "crashed": " (crash)"}.get(row["how"], "")
        place = row["path"].removeprefix("flowkit/")
        lines.append(f"| {place}:{row['line']} | {row['operator']} | {cells}{how} |")
    lines += ["", "## Equivalent", "", "Nothing that runs can tell these from the original.", ""]
    for row in rows:
        if row["name"] in proven:
            what = f"`{cell(row['old'])}` became `{cell(row['text'])}`"
            lines.append(f"* {row['path']}:{row['line']}, {what}: {proven[row['name']]}")
    return "\n".join(lines) + "\n"


def summary(rows: list[dict[str, Any]]) -> str:
    killed = sum(row["killed"] for row in rows)
    return f"{killed} of {len(rows)} ({100 * killed / max(len(rows), 1):.1f}%)"


def cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|").replace("`", "'")
    return text if len(text) <= 60 else text[:57] + "..."
