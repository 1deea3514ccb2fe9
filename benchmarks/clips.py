"""What the benchmarks share: real clips, how accuracy is told and JSON written, their errors."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowkit.errors import FlowkitError

if TYPE_CHECKING:
    from flowkit.scores.files import Scores


def default_data() -> Path:
    """The folder of real clips: $FLOWKIT_DATA, else ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("FLOWKIT_DATA", beside))


def found(path: Path) -> Path:
    """`path`, a clip, an image or a folder of them; FlowkitError if it is not there."""
    if not path.exists():
        raise FlowkitError(f"{path}: not there; name the folder of real clips, or set FLOWKIT_DATA")
    return path


def accuracy(scores: Scores) -> dict[str, Any]:
    """How many videos of scores have their class first, with the 95% Wilson interval."""
    from flowkit.report.figures import wilson

    right = int((scores.values.argmax(1) == scores.labels).sum())
    rate = wilson(right / len(scores.labels), len(scores.labels))
    return {
        "accuracy": round(rate.value, 4),
        "interval_95": [round(rate.low, 4), round(rate.high, 4)],
        "right": right,
        "videos": len(scores.labels),
    }


def write_json(file: Path, value: Any) -> None:
    """Write `value` to `file`, whose folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=1) + "\n")


def run_benchmark(main: Callable[[], None]) -> None:
    """Call `main`; what flowkit or the system refuses becomes one line and status 2."""
    try:
        main()
    except (FlowkitError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
