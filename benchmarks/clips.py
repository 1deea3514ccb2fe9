"""What the benchmarks share: where the real clips are, and how they end where they cannot run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from flowkit.errors import FlowkitError


def default_data() -> Path:
    """The folder of real clips: $FLOWKIT_DATA, else ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("FLOWKIT_DATA", beside))


def found(path: Path) -> Path:
    """`path`, a clip, an image or a folder of them; FlowkitError if it is not there."""
    if not path.exists():
        raise FlowkitError(f"{path}: not there; name the folder of real clips, or set FLOWKIT_DATA")
    return path


def run_benchmark(main: Callable[[], None]) -> None:
    """Call `main`; what flowkit or the system refuses becomes one line and status 2."""
    try:
        main()
    except (FlowkitError, OSError) as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2)
