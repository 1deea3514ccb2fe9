"""The public names of flowkit: lazy, typed, documented; the tutorial's blocks run."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flowkit
from flowkit.flow.methods import make_method

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


@pytest.mark.parametrize("name", flowkit.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(flowkit, name)
    assert value.__doc__ and value.__doc__.splitlines()[0].rstrip().endswith((".", ":", ";"))


def test_importing_flowkit_loads_nothing_heavy():
    code = (
        "import sys, flowkit; dir(flowkit); "
        "sys.exit(bool({'numpy', 'cv2', 'torch', 'numba', 'av'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


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
