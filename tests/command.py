"""`flowkit` run in this process, where nothing is lost by it: no signal, no import."""

import contextlib
import logging
import subprocess
import sys
from unittest import mock

from click.testing import CliRunner

from flowkit_cli import output
from flowkit_cli.main import main


def run_here(*arguments, cwd, stdin=b"") -> subprocess.CompletedProcess:
    """What `subprocess.run` gives for a command: its exit status, and its output as bytes."""
    root, log = logging.getLogger(), logging.getLogger("flowkit")
    handlers, level = root.handlers[:], log.level
    status: object = 0
    with contextlib.ExitStack() as stack:
        stack.callback(log.setLevel, level)
        stack.callback(root.handlers.__setitem__, slice(None), handlers)
        root.handlers.clear()
        stack.enter_context(mock.patch.multiple(output, quiet=0, verbose=0))
        stack.enter_context(mock.patch.object(sys, "argv", ["flowkit", *map(str, arguments)]))
        stack.enter_context(contextlib.chdir(cwd))
        out, err, _ = stack.enter_context(CliRunner().isolation(input=stdin))
        try:
            main()
        except SystemExit as ended:
            status = ended.code
        return subprocess.CompletedProcess(
            arguments, int(status or 0), out.getvalue(), err.getvalue()
        )
