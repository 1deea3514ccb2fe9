"""The public names of flowkit: lazy, typed, documented; the tutorial's blocks run."""

import ast
import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from made_records import write_record
from made_scores import make_scores

import flowkit
from flowkit import Fusion
from flowkit.data.splits import Split, Video
from flowkit.flow.methods import make_method
from flowkit_cli import library_reference

ROOT = Path(__file__).parents[1]


def typed_names() -> dict[str, str]:
    """What `flowkit/__init__` imports for type checkers: name -> module."""
    tree = ast.parse((ROOT / "flowkit/__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_type_checkers_and_users_see_the_same_names():
    assert typed_names() == flowkit._HOMES
    assert sorted(flowkit.__all__) == sorted(flowkit._HOMES)
    assert set(flowkit.__all__) <= set(dir(flowkit))
    assert (ROOT / "flowkit/py.typed").exists()


def test_every_public_name_is_there_and_documented():
    for name in flowkit.__all__:
        about = getattr(flowkit, name).__doc__
        assert about and about.splitlines()[0].rstrip().endswith((".", ":", ";")), name


REFERENCE = [name for names in library_reference.SECTIONS.values() for name in names]


@cache
def callables(name: str) -> dict[str, tuple[Callable | None, dict[str, object], str]]:
    """A name and its public methods: where it is written, its annotations, its docstring.

    A method's docstring is read below that of its class.
    """
    value = library_reference.find(name)
    about = inspect.getdoc(value) or ""
    if not inspect.isclass(value):
        return {name: (value, inspect.get_annotations(value), about)}
    found = {}
    if is_dataclass(value):
        check = getattr(value, "__post_init__", None)  # where it refuses values
        found[name] = (check, inspect.get_annotations(value), about)
    elif "__init__" in vars(value) and not hasattr(value, "_is_protocol"):
        found[name] = (value.__init__, inspect.get_annotations(value.__init__), about)
    for method, function in library_reference.members(value):
        function = function.fget if isinstance(function, property) else function
        own = inspect.getdoc(function)
        assert own, f"{name}.{method}: no docstring"
        text = f"{about} {own}"
        found[f"{name}.{method}"] = (function, inspect.get_annotations(function), text)
    return found


def test_the_reference_is_up_to_date_and_has_every_public_name():
    text = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert text == library_reference.reference(), "make docs writes it"
    assert {name for name in REFERENCE if ":" not in name} == set(flowkit.__all__)


def test_what_takes_or_gives_arrays_says_shape_dtype_and_unit():
    every = [found for name in REFERENCE for found in callables(name).items()]
    for where, (_, annotations, text) in every:
        if not any(re.search(r"ndarray|Tensor", str(one)) for one in annotations.values()):
            continue
        assert re.search(r"\([^()]*\b[A-Z]\b[^()]*\)", text), f"{where}: no shape"
        assert re.search(r"\b(float|uint|int)(8|32|64)\b", text), f"{where}: no dtype"
        if "field" in text:
            assert re.search(r"\bpx\b", text), f"{where}: no unit"


def test_what_refuses_names_its_errors():
    """Each error that is raised in a function itself; public functions name at least one."""
    every = [(name, *found) for name in REFERENCE for found in callables(name).items()]
    for name, where, (function, _, text) in every:
        source = inspect.getsource(function) if function else ""
        tree = ast.parse(textwrap.dedent(source))
        raised = {
            node.exc.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        }
        named = set(re.findall(r"\b\w+Error\b", text))
        assert raised <= named, f"{where}: raises {raised - named}"
        assert named or ":" in name or "." in where or not inspect.isfunction(function), where


SHORT = 200  # letters that a repr may have


def test_public_objects_have_short_reprs(tmp_path):
    fields = np.zeros((40, 8, 12, 2), np.float32)
    record = write_record(tmp_path, "a/v1", fields)
    for fact in (f"Record('{tmp_path}/a/v1'", "41 frames 12x8", "40 forward step 1", "npy"):
        assert fact in repr(record)
    scores = make_scores()
    videos = tuple(Video(f"a/v{n}", "a", f"g{n}") for n in range(100))
    split = Split("made", ("a", "b"), videos, (), ())
    report = flowkit.evaluate({"spatial": scores})
    fusion = Fusion("weighted", weights={"spatial": 1.0, "temporal": 2.0})
    clips = flowkit.TrainingClips(
        Split("made", ("a", "b"), (Video("a/v1", "a", "g1"),), (), ()),
        flowkit.RecordFolder(tmp_path),
    )
    for value in (scores, split, report, report.methods["spatial"], fusion, clips):
        text = repr(value)
        assert len(text) < SHORT and "array" not in text and "object at" not in text, text
    assert "'made', 2 classes" in repr(split) and "100 train, 0 heldout, 0 test" in repr(split)


def test_importing_flowkit_loads_nothing_heavy():
    code = (
        "import sys, flowkit; dir(flowkit); "
        "sys.exit(bool({'numpy', 'cv2', 'torch', 'numba', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_blocks_of_the_tutorial_run_one_after_the_other(tmp_path):
    """A block that begins with a comment of a file's name is saved in that file."""
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs/library.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) > 5
    for block in [one for one in blocks if one.startswith("# ")]:
        (tmp_path / block.splitlines()[0].removeprefix("# ")).write_text(block)
        blocks.remove(block)
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "top-1: 0." in done.stdout and "'name': 'phase-shift'" in done.stdout
    assert re.findall(r"^(\w+): \d\.\d\d \(", done.stdout, re.MULTILINE) == [
        "own", "other", "average", "maximum",
    ]  # fmt: skip


def test_one_version_and_one_name_are_told_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {flowkit.__version__}\n" in citation
    releases = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == flowkit.__version__
    assert "name = flowkit-video\n" in (ROOT / "setup.cfg").read_text()
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        assert not re.search(r"pip install flowkit(?!-)", page.read_text(encoding="utf-8")), page


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_examples_of_a_page_import_what_there_is(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        lines = [line for line in block.splitlines() if re.match(r"(from|import) ", line)]
        exec(compile("\n".join(lines), page, "exec"), {})
        ast.parse(block)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'extrakt'"):
        flowkit.extrakt  # noqa: B018


def test_the_field_of_two_frames_is_that_of_the_method():
    rng = np.random.default_rng(0)
    first = np.kron(rng.integers(0, 255, (12, 16)), np.ones((4, 4))).astype(np.uint8)
    second = np.roll(first, 2, axis=1)
    color = np.repeat(first[..., None], 3, axis=2)
    method = make_method("farneback")
    [expected] = method.fields([(first, second)])
    np.testing.assert_array_equal(flowkit.compute_field(first, second, method), expected)
    np.testing.assert_array_equal(flowkit.compute_field(color, second, "farneback"), expected)
    assert np.median(expected[..., 0]) == pytest.approx(2, abs=0.3)
    with pytest.raises(flowkit.UsageError, match="expected a method of tvl1"):
        flowkit.compute_field(first, second, "flownet")
