"""The counts of the import graph, and the walks of docs/design.md, which name what there is."""

import importlib
import re
from pathlib import Path

import pytest
from house_counts import circles, counts, floors, packages

TEXT = Path(__file__).parents[1].joinpath("docs/design.md").read_text(encoding="utf-8")
WALKS = TEXT.partition("## The walks")[2].partition("\n## ")[0]
STAGES = re.findall(r"^\| `([\w.]+)` \|", WALKS, re.MULTILINE)


def test_floors_and_circles_of_a_small_graph():
    graph = {"a": set(), "b": {"a"}, "c": {"b", "d"}, "d": {"c"}, "e": {"a", "b"}, "f": {"d"}}
    assert floors(graph) == [["a"], ["b"], ["e"]]
    assert circles(graph) == [["c", "d"]]
    assert counts(graph) == "6 rooms, 3 floors, 7 arrows, 1 circles"


def test_modules_of_a_package_are_one_room():
    modules = {"x/one": {"x/two", "y"}, "x/two": {"z/three"}, "y": set(), "z/three": {"y"}}
    assert packages(modules) == {"x": {"y", "z"}, "y": set(), "z": {"y"}}


def test_there_are_two_walks():
    assert len(STAGES) > 25


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_of_a_walk_is_there(stage):
    parts = stage.split(".")
    value = importlib.import_module(
        ".".join(parts[:2]) if parts[0] == "flowkit_cli" else f"flowkit.{parts[0]}.{parts[1]}"
    )
    for name in parts[2:]:
        value = getattr(value, name)
