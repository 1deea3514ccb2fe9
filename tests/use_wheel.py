"""Unpack a wheel into an empty folder and use what lies there: nothing may be missing from it.

python tests/use_wheel.py build/wheel/flowkit_video-0.2.0-py3-none-any.whl
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

USE = """
import sys, pathlib
import numpy as np
import flowkit
place = pathlib.Path(sys.argv[1]).resolve()
assert pathlib.Path(flowkit.__file__).resolve().is_relative_to(place), flowkit.__file__
for name in flowkit.__all__:
    getattr(flowkit, name)
frame = np.zeros((32, 48), np.uint8)
assert not flowkit.compute_field(frame, frame, "farneback-opencv").any()
from flowkit.pictures.lettering import load_font
load_font(12)
from flowkit.report import html
from flowkit_cli.main import COMMANDS, cli
from click.testing import CliRunner
for command in COMMANDS:
    assert CliRunner().invoke(cli, [command, "--help"]).exit_code == 0, command
print(f"{place}: {len(flowkit.__all__)} public names, {len(COMMANDS)} commands")
"""


def main() -> None:
    """Exit status 0 if the package in the wheel can be used by itself."""
    [wheel] = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(wheel).extractall(folder)
        names = {path.name for path in Path(folder).iterdir()}
        assert {"flowkit", "flowkit_cli"} <= names and "tests" not in names, names
        [page] = Path(folder).glob("*.data/data/share/man/man1/flowkit-extract.1")
        assert page.read_text(encoding="utf-8").startswith(".TH"), page
        command = [sys.executable, "-c", USE, folder]
        sys.exit(subprocess.run(command, cwd=folder, check=False).returncode)


if __name__ == "__main__":
    main()
