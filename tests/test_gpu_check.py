"""The check on a GPU: each part is guarded, and the report is whole after each of them."""

import json
import sys
import time
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import gpu_check

PASSES = "def test_it():\n    pass\n"
SKIPS = "import pytest\n\ndef test_other():\n    pytest.skip('nothing here')\n"
FAILS = "def test_third():\n    assert 1 == 2\n"


def code(name: str, text: str, seconds: float = 60) -> gpu_check.Part:
    return gpu_check.Part(name, ("-c", text), seconds)


def made_tests(folder: Path, text: str) -> gpu_check.Part:
    (folder / "test_made.py").write_text(text)
    command = ("-m", "pytest", "-rs", "-p", "no:cacheprovider", str(folder / "test_made.py"))
    return gpu_check.Part("tests", command, 60)


def test_a_part_that_fails_or_lacks_something_costs_itself_only(tmp_path):
    file = tmp_path / "reports" / "made.json"
    seen = "import json, sys; print(sorted(json.load(open(sys.argv[1])))); print('{}')"
    todo = [
        code("tvl1", "print('words'); print('{\\n \"pairs_per_s\": 3500.0\\n}')"),
        code("farneback", "print('{\"pairs_per_s\": 12.0}')"),
        code("crash", "import os; os.abort()"),
        code("lacking", "import a_module_that_is_nowhere"),
        code("slow", "import time; time.sleep(60)", seconds=0.5),
        gpu_check.Part("after", ("-c", seen, str(file)), 60),
    ]
    failed = gpu_check.check(todo, file, time.monotonic() + 60, {"chip": {"name": "made"}})
    report = json.loads(file.read_text())
    assert failed == ["crash", "slow", "farneback.pairs_per_s"]
    assert report["tvl1"]["pairs_per_s"] == 3500
    assert report["bars"]["farneback.pairs_per_s"]["reached"] == 12
    assert "training_jpg.share_of_network" not in report["bars"]  # it was not measured
    assert report["lacking"]["skipped"] == "a_module_that_is_nowhere is not installed"
    assert "not finished after" in report["slow"]["error"]
    assert report["chip"] == {"name": "made"} and "error" not in report["after"]


def test_the_report_is_there_after_each_part(tmp_path):
    file = tmp_path / "made.json"
    count = f"import json; print(json.dumps({{'n': len(json.load(open({str(file)!r})))}}))"
    todo = [code("first", "print('{}')"), code("second", count)]
    assert gpu_check.check(todo, file, time.monotonic() + 60, {}) == []
    assert json.loads(file.read_text())["second"]["n"] == 2  # the bars and the first part


def test_a_report_of_the_same_chip_and_commit_is_gone_on_with(tmp_path):
    file, later = tmp_path / "made.json", time.monotonic() + 60
    head = {"chip": {"name": "made"}, "commit": "a"}
    for name, other in (("first", {}), ("second", {}), ("third", {"commit": "b"})):
        gpu_check.check([code(name, "print('{}')")], file, later, {**head, **other})
        if name == "second":
            assert {"first", "second"} <= json.loads(file.read_text()).keys()
    assert json.loads(file.read_text()).keys() == {"chip", "commit", "bars", "third"}


def test_parts_are_chosen_by_name(capsys):
    every = [code(name, "") for name in ("a", "b", "c")]
    assert gpu_check.chosen(every, None) == every
    assert gpu_check.chosen(every, "c,a") == [every[0], every[2]]
    with pytest.raises(SystemExit):
        gpu_check.chosen(every, "a,d")
    assert "expected names of a, b, c, got ['d']" in capsys.readouterr().err


def test_no_part_is_begun_after_its_time(tmp_path):
    file = tmp_path / "made.json"
    assert gpu_check.check([code("late", "print('{}')")], file, time.monotonic() - 1, {}) == []
    assert json.loads(file.read_text())["late"] == {"skipped": "no time was left"}


@pytest.mark.parametrize(
    ("text", "counts"),
    [(PASSES + SKIPS, (1, 0, 1)), (PASSES + FAILS, (1, 1, 0))],
)
def test_skipped_tests_are_counted_as_skipped(tmp_path, text, counts):
    found = gpu_check.run_part(made_tests(tmp_path, text), time.monotonic() + 60)
    assert (found["passed"], found["failed"], found["skipped"]) == counts
    assert ("error" in found) == bool(counts[1])
    assert len(found["skipped_because"]) == counts[2]


def test_a_report_is_called_as_its_chip():
    assert gpu_check.slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
