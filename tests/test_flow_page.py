"""The page that compares flow methods: every number in it is one of a report."""

import json
import shutil
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import flow_page

ROOT = Path(__file__).parents[1]
REPORT = {
    "machine": "one core of a <made> one", "commit": None, "clips": 3,
    "load_average": [1.5, 1, 1], "cores": 2,
    "same": {"farneback to farneback-opencv": {"mean": 0, "worst": 0}},
    "methods": [
        {"method": "tvl1-opencv", "pairs_per_s": 0.5, "to_tvl1_px": {"mean": 0, "worst": 0},
         "ground_truth_px": {"Venus": 0.25, "Grove2": 0.75}},
        {"method": "tvl1:fast", "pairs_per_s": 120, "to_tvl1_px": {"mean": 0.5, "worst": 2},
         "ground_truth_px": {"Venus": 0.5, "Grove2": 0.75}},
        {"method": "raft_small:float32:1", "pairs_per_s": 3.14159},
        {"method": "brox-opencv-cuda", "error": "no time was left"},
    ],
}  # fmt: skip
ACCURACIES = {"tvl1:fast": flow_page.Accuracy(0.645, 0.562, 0.72)}


def test_the_page_is_what_the_reports_make_of_it(tmp_path):
    page = tmp_path / "methods.md"
    shutil.copyfile(ROOT / "docs" / "methods.md", page)
    flow_page.write_page(page)
    for file in (page, page.with_suffix(".svg")):
        assert file.read_text() == (ROOT / "docs" / file.name).read_text(), (
            "python benchmarks/flow_page.py docs/methods.md"
        )


def test_rows_have_what_is_known_and_why_the_rest_is_not():
    first, fast, raft, brox = flow_page.table_of(REPORT, ACCURACIES).splitlines()[2:]
    assert first == "| `tvl1-opencv` | 0.5 | 1 | 0.000 (0.000) | 0.500 |  |"
    assert fast == "| `tvl1:fast` | 120 | 240 | 0.500 (2.000) | 0.625 | 64.5 (56.2 to 72.0) |"
    assert raft == "| `raft_small:float32:1` | 3.14 | 6.28 |  |  |  |"
    assert brox == "| `brox-opencv-cuda` | not measured: no time was left |  |  |  |  |"
    assert "* farneback to farneback-opencv: 0 (0)" in flow_page.tables_of([REPORT], {})


def test_accuracies_are_those_of_the_rows_that_there_are(tmp_path):
    folder = tmp_path / "reproduce-made"
    folder.mkdir()
    for name, accuracy in (("flow-tvl1-fast", 0.645), ("flow-dis", 0.5), ("temporal-L10", 0.9)):
        test = {"accuracy": accuracy, "interval_95": [accuracy - 0.1, accuracy + 0.1]}
        (folder / f"{name}.json").write_text(json.dumps({"test": test}))
    found = flow_page.read_accuracies(tmp_path)
    assert {name: str(one) for name, one in found.items()} == {
        "tvl1:fast": "64.5 (54.5 to 74.5)",
        "dis": "50.0 (40.0 to 60.0)",
    }


def test_the_picture_has_a_dot_and_a_label_for_each_method_measured():
    picture = ElementTree.fromstring(flow_page.picture_of([REPORT], {}))
    texts = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    dots = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(dots) == 1 + 2  # the report's own, and the methods of which both are known
    assert {"tvl1-opencv", "tvl1:fast", "one core of a <made> one"} <= set(texts)
    slow, fast = sorted(dots[1:], key=lambda one: float(one.get("cx")))
    assert float(slow.get("cy")) > float(fast.get("cy"))  # the less error, the lower


def test_the_second_panel_has_the_accuracies_that_there_are_with_their_intervals():
    picture = ElementTree.fromstring(flow_page.picture_of([REPORT], ACCURACIES))
    panels = picture.findall("{http://www.w3.org/2000/svg}svg")
    [interval] = picture.iterfind(".//*[@class='curve m0']")
    assert len(panels) == 2 and panels[1].find(".//*[@class='curve m0']") is interval
    middle = float(panels[1].findall("{http://www.w3.org/2000/svg}circle")[-1].get("cy"))
    assert float(interval.get("y1")) < middle < float(interval.get("y2"))


@pytest.mark.parametrize("apart", [0, 3, 40])
def test_labels_do_not_meet(apart):
    taken: list[tuple[float, float, float]] = []
    for number in range(6):
        flow_page.free_line(taken, 100 + apart * number, "a-method", 200)
    for left, right, line in taken:
        met = [one for one in taken if left < one[1] and one[0] < right]
        assert sum(abs(line - other) < flow_page.LINE for *_, other in met) == 1  # itself
