"""Flow methods of one's own: a class by its module, a program on pipes; run only where named."""

import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command import run_here
from made_runs import write_run
from made_videos import moving_texture, write_video

from flowkit.data.stacks import StackForm
from flowkit.errors import FlowkitError, UsageError
from flowkit.flow import program
from flowkit.flow.methods import describe_method, make_method, method_of
from flowkit.records.reading import flow_of, open_record

CLASS = """
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from flowkit.flow.method import parameter


@dataclass(frozen=True)
class Shift:
    name: ClassVar[str] = "shift"
    presets: ClassVar[dict] = {}
    right: float = parameter(1.0, "px to the right.")
    whole: bool = parameter(False, "Round it.")

    def fields(self, pairs):
        for first, _ in pairs:
            x = round(self.right) if self.whole else self.right
            yield np.full((*first.shape, 2), (x, 0), np.float32)


class Unfrozen:
    pass
"""
# As docs/methods.md has it: what a program of another environment needs
PROGRAM = """
import sys
import numpy as np

pipe, out = sys.stdin.buffer, sys.stdout.buffer


def read_image():
    if pipe.readline() != b"P6\\n":
        sys.exit()
    width, height = map(int, pipe.readline().split())
    pipe.readline()
    return np.frombuffer(pipe.read(3 * width * height), np.uint8).reshape(height, width, 3)


while True:
    first, second = read_image(), read_image()
    height, width = first.shape[:2]
    field = np.full((height, width, 2), (second.astype(float) - first).mean((0, 1))[:2], "<f4")
    out.write(b"PIEH" + np.array([width, height], "<i4").tobytes() + field.tobytes())
    out.flush()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a video, a module and a program, and this process in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/a.avi", moving_texture(5, size=(32, 48)))
    (tmp_path / "own_flow.py").write_text(CLASS)
    (tmp_path / "pipes.py").write_text(PROGRAM)
    yield tmp_path
    sys.modules.pop("own_flow", None)
    for running in program._programs.values():
        running.end()
    program._programs.clear()


@pytest.fixture
def command(place):
    return f"exec:{sys.executable} pipes.py"


def run(place, *arguments):
    return run_here(*arguments, cwd=place)


def gray(level, shape=(4, 6)):
    return np.full(shape, level, np.uint8)


def test_a_class_is_named_by_its_module_and_takes_parameters(place):
    method = ("--method", "own_flow:Shift", "--parameter", "right=2.5", "--parameter", "whole=yes")
    done = run(place, "extract", "videos", *method, "-j", 1, "--format", "npy")
    assert done.returncode == 0, done.stderr
    record = open_record(place / "flow/a")
    assert (record.fields(0, 4) == (2, 0)).all()
    assert record.sidecar["request"]["method"] == {"name": "shift", "right": 2.5, "whole": True}
    done = run(place, "extract", "videos", *method, "-j", 1, "--format", "npy")
    assert b"1 there already" in done.stderr
    done = run(place, "extract", "videos", *method[:-2], "-j", 1, "--format", "npy")
    assert done.returncode == 2 and b"method.whole: true on disk, false asked for" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--method", "no_such_module:Shift"), "No module named 'no_such_module'"),
        (("--method", "own_flow:Absent"), "has no attribute 'Absent'"),
        (("--method", "own_flow:Unfrozen"), "expected a frozen dataclass"),
        (("--method", "own_flow:Shift", "--parameter", "up=1"), "has no parameter up"),
        (("--method", "own_flow:Shift", "--parameter", "right=a"), "'a' is not a valid float"),
        (("--method", "own_flow:Shift", "--parameter", "right"), "expected NAME=VALUE"),
        (("--method", "own_flow:Shift", "--dis-patch-size", "8"), "does not go with --method"),
        (("--method", "own_flow:Shift", "--gpu"), "leave --gpu out: it computes on the CPU"),
        (("--method", "dis", "--parameter", "right=1"), "goes with --method MODULE:CLASS"),
        (("--method", "exec:no-such-program"), "found none 'no-such-program'"),
        (("--method", "exec:"), "expected a program and its arguments"),
        (("--method", "exec:'"), "No closing quotation"),
        (("--method", "tvl2"), "'tvl2' is not one of"),
    ],
)
def test_what_cannot_be_is_said_in_one_line_before_any_work(place, options, message):
    done = run(place, "extract", "videos", *options)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert not (place / "flow").exists()


def test_a_class_that_takes_a_name_of_the_table_is_refused(place):
    text = CLASS.replace('"shift"', '"tvl1"')
    (place / "own_flow.py").write_text(text)
    with pytest.raises(UsageError, match="expected a `name` of its own, got 'tvl1'"):
        make_method("own_flow:Shift")


def test_a_program_gets_colors_and_its_fields_are_stored(place, command):
    done = run(place, "extract", "videos", "--method", command, "-j", 1, "--format", "npy")
    assert done.returncode == 0, done.stderr
    record = open_record(place / "flow/a")
    told = record.sidecar["request"]["method"]
    assert told == {"name": "exec", "command": command.removeprefix("exec:")}
    red, green, blue = np.array([30, 20, 10], np.uint8)
    first = np.zeros((4, 6, 3), np.uint8)
    second = np.broadcast_to(np.array([blue, green, red]), first.shape).copy()
    [field] = make_method(command).fields([(first, second)])
    assert (field.dtype, field.shape) == (np.float32, (4, 6, 2))
    assert (field == (red, green)).all(), "PPM has red first"


PTLFLOW = """
class Model:
    def to(self, device): return self
    eval = lambda self: self
    def __call__(self, images):
        import torch
        first, second = images
        return {"flows": torch.full((1, 1, 2, *first.shape[:2]), float(second[0, 0, 0]))}
def get_model(name, ckpt_path): print(name, ckpt_path); return Model()
"""
ADAPTER = """
class IOAdapter:
    def __init__(self, model, size, cuda): pass
    prepare_inputs = staticmethod(lambda images: images)
    unscale = staticmethod(lambda found: found)
"""


@pytest.mark.slow
def test_the_program_of_the_docs_speaks_on_pipes(place):
    page = Path(__file__).parents[1] / "docs/own.md"
    [block] = re.findall(r"```python\n(# ptl\.py.*?)```", page.read_text(), re.S)
    (place / "ptl.py").write_text(block)
    (place / "ptlflow/utils").mkdir(parents=True)
    (place / "ptlflow/__init__.py").write_text(PTLFLOW)
    (place / "ptlflow/utils/io_adapter.py").write_text(ADAPTER)
    method = make_method(f"exec:{sys.executable} ptl.py dpflow")
    second = np.zeros((4, 6, 3), np.uint8)
    second[..., 0] = 7  # blue, which the program sees first again
    fields = list(method.fields([(second * 0, second), (gray(0), gray(3))]))
    assert [field.shape for field in fields] == [(4, 6, 2)] * 2
    assert [field.max() for field in fields] == [7, 3]


def test_one_program_serves_a_process_and_is_started_again_after_it_died(place, command):
    method = make_method(command)
    pairs = [(gray(0), gray(3)), (gray(1), gray(2, (4, 6)))]
    assert [field.max() for field in method.fields(pairs)] == [3, 1]
    [running] = program._programs.values()
    running.process.kill()
    running.process.wait()
    assert [field.max() for field in method.fields([(gray(0, (8, 9)), gray(5, (8, 9)))])] == [5]
    assert program._running(method.command) is not running


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys; sys.exit('no weights')", "ended with status 1: no weights"),
        ("print('loading the net'); import sys; sys.stdin.read()", "fields|got b'loading"),
        (
            "import sys; sys.stdin.buffer.read(99); sys.stdout.buffer.write(b'PIEH' + bytes(99))",
            "expected the .flo file of a field of 6x4 px, got b'PIEH",
        ),
        (
            "import os; os.read(0, 999); os.write(1, b'PIEH' + bytes([6, 0, 0, 0, 4, 0, 0, 0]))",
            "ended with status 0",
        ),
    ],
)
def test_a_program_that_fails_is_named_with_its_last_line(place, body, message):
    (place / "bad.py").write_text(body)
    method = make_method(f"exec:{sys.executable} -u bad.py")
    with pytest.raises(FlowkitError, match=message):
        list(method.fields([(gray(0), gray(1))] * 2))
    [running] = program._programs.values()
    assert running.process.poll() is not None


def test_a_crash_costs_one_video(place):
    body = PROGRAM.replace("height, width =", "0 / (len(first) - 16)\n    height, width =")
    (place / "pipes.py").write_text(body)
    write_video(place / "videos/b.avi", moving_texture(4, size=(16, 48)))
    write_video(place / "videos/c.avi", moving_texture(4, size=(32, 48)))
    method = ("--method", f"exec:{sys.executable} pipes.py")
    done = run(place, "extract", "videos", *method, "-j", 1, "--json")
    told = [json.loads(line) for line in done.stdout.splitlines()][:-1]
    assert done.returncode == 1
    assert {one["video"]: one["status"] for one in told} == {
        "a": "done",
        "b": "failed",
        "c": "done",
    }
    assert any("ZeroDivisionError" in one.get("reason", "") for one in told)


@pytest.mark.slow
def test_a_program_ends_with_the_worker_that_is_killed_for_its_time(place):
    (place / "pipes.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(99)"
    )
    method = ("--method", f"exec:{sys.executable} pipes.py")
    done = run(place, "extract", "videos", *method, "-j", 1, "--timeout", "2")
    assert done.returncode == 1 and b"stopped after 2 s (timeout)" in done.stderr, done.stderr
    assert dies(int((place / "pid").read_text()))


def dies(number):
    """Whether a process is gone, within the two seconds that its death may take."""
    for _ in range(20):
        state = Path(f"/proc/{number}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_record_and_a_checkpoint_never_run_own_code_by_themselves(place, command):
    own = make_method("own_flow:Shift", right=2.0)
    assert method_of(describe_method(own), own) is own
    with pytest.raises(UsageError, match=r"shift \(right: 2.0, whole: False\), which runs only"):
        method_of(describe_method(own))
    with pytest.raises(UsageError, match=r"another method than that of the flow: right: 2.0"):
        method_of(describe_method(own), make_method("own_flow:Shift"))
    with pytest.raises(UsageError, match="expected flow of tvl1, got the method shift"):
        method_of(describe_method(make_method("tvl1")), own)
    method = ("--method", "own_flow:Shift", "--parameter", "right=2.0")
    assert run(place, "extract", "videos", *method, "-j", 1).returncode == 0
    flow = flow_of(open_record(place / "flow/a"))
    write_run(place / "runs/temporal", form=StackForm(2), flow=flow)
    sys.modules.pop("own_flow")
    options = ("--views", "center", "--moments", 1, "-j", 1)
    done = run(place, "predict", "videos/a.avi", *options)
    assert done.returncode == 2 and b"--method MODULE:CLASS or exec:COMMAND names it" in done.stderr
    assert "own_flow" not in sys.modules
    done = run(place, "predict", "videos/a.avi", *options, *method)
    assert done.returncode == 0, done.stderr
    assert b"videos/a.avi: " in done.stdout
    done = run(place, "predict", "videos/a.avi", *options, *method[:2])
    assert done.returncode == 2 and b"right: 2.0 on disk, 1.0 asked for" in done.stderr
