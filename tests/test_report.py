"""Every figure of the report against scikit-learn, SciPy or a hand, and the page as it is read."""

import base64
import csv
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from made_records import write_record
from made_scores import make_scores, shuffle
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    recall_score,
    top_k_accuracy_score,
)

from flowkit._cv2 import cv2
from flowkit.errors import ScoresError
from flowkit.pictures.curves import curve_chart, draw_curves, round_values
from flowkit.report.charts import method_marks
from flowkit.report.extras import read_curves, read_pictures
from flowkit.report.figures import (
    PUBLISHED,
    PUBLISHED_2016,
    class_gains,
    class_rates,
    confusions,
    data_set,
    evaluate,
    evaluate_files,
    group_by_class,
    mcnemar,
    mean_class_rate,
    mean_table,
    mistakes,
    wilson,
)
from flowkit.report.html import Extras, page, write_page
from flowkit.report.text import as_json, as_text, methods_text
from flowkit.scores.files import Scores, softmax, write_scores
from flowkit.scores.fusion import Fusion, fuse

MANY = tuple(f"class {k}" for k in range(12))


def streams_of(**options):
    streams = {
        "spatial": make_scores(seed=0, strength=1.0, **options),
        "temporal": make_scores(seed=1, strength=1.6, **options),
    }
    return {**streams, "fused": fuse(streams, Fusion("average"))}


@pytest.fixture(scope="module")
def streams():
    return streams_of(split="ucf101-1", classes=MANY)


@pytest.fixture(scope="module")
def report(streams):
    return evaluate(streams)


def test_accuracies_are_scikit_learns(streams, report):
    assert list(report.methods) == ["spatial", "temporal", "fused"]
    for name, scores in streams.items():
        method, truth = report.methods[name], scores.labels
        predicted = scores.values.argmax(axis=1)
        labels = np.arange(len(MANY))
        assert method.top1.value == pytest.approx(accuracy_score(truth, predicted))
        assert method.top5.value == pytest.approx(
            top_k_accuracy_score(truth, scores.values, k=5, labels=labels)
        )
        assert method.mean_class.value == pytest.approx(balanced_accuracy_score(truth, predicted))
        found = [rate.value for rate in class_rates(report, name).values()]
        assert found == pytest.approx(recall_score(truth, predicted, average=None))
    np.testing.assert_array_equal(
        report.confusion, confusion_matrix(truth, streams["fused"].values.argmax(axis=1))
    )
    assert 0.3 < report.methods["spatial"].top1.value < report.methods["fused"].top1.value < 0.95


def test_mean_class_accuracy_weighs_classes_alike():
    values = [[0.9, 0.1]] * 3 + [[0.8, 0.2]]  # three of three right, none of one
    scores = Scores("abcd", ["x", "y"], values, [0, 0, 0, 1], {"kind": "softmax"})
    method = evaluate({"one": scores}).methods["one"]
    assert (method.top1.value, method.mean_class.value) == (0.75, 0.5)


@pytest.mark.parametrize(("right", "count"), [(0, 7), (7, 7), (1, 2), (81, 100), (3064, 3783)])
def test_interval_is_scipys_wilson_interval(right, count):
    expected = binomtest(right, count).proportion_ci(0.95, method="wilson")
    rate = wilson(right / count, count)
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_interval_of_the_paper_s_test_part():
    rate = wilson(0.81, 3783)  # "a 95% interval is +-1.25 points"
    assert (rate.high - rate.low) / 2 == pytest.approx(0.0125, abs=0.0001)


def test_interval_of_mean_class_accuracy_by_hand():
    # p = 1/2, 1/4 of 4 videos each: variance (1/4 + 3/16) / 3 / 4 = 7/192; mean 3/8
    right, counts = np.array([2, 1]), np.array([4, 4])
    effective = (3 / 8) * (5 / 8) / (7 / 192)
    rate, expected = mean_class_rate(right, counts), wilson(3 / 8, effective)
    assert (rate.value, rate.low, rate.high) == pytest.approx(
        (expected.value, expected.low, expected.high)
    )
    # no spread within classes: the harmonic number of videos, 2^2 / (1/4 + 1/2)
    assert mean_class_rate(np.array([4, 0]), np.array([4, 2])) == wilson(0.5, 16 / 3)


def test_interval_of_mean_class_accuracy_covers_the_truth():
    rng = np.random.default_rng(0)
    rates, counts = rng.beta(8, 2, 40), rng.integers(10, 50, 40)
    covered = 0
    for _ in range(1000):
        rate = mean_class_rate(rng.binomial(counts, rates), counts)
        covered += rate.low <= rates.mean() <= rate.high
    assert 930 <= covered <= 970


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (5, 0), (3, 9), (10, 10), (486, 32)])
def test_mcnemar_is_scipys_binomial_test(gained, lost):
    expected = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_videos_does_not_overflow():
    assert mcnemar(9000, 10) == 0.0
    assert mcnemar(5000, 5100) == pytest.approx(binomtest(5000, 10100).pvalue, rel=1e-9)


def test_gains_and_losses_are_the_videos_only_one_tells_right(streams, report):
    right = {name: s.values.argmax(axis=1) == s.labels for name, s in streams.items()}
    assert [one.other for one in report.comparisons] == ["spatial", "temporal"]
    for one in report.comparisons:
        videos = np.array(streams["fused"].videos)
        assert list(one.gained) == videos[right["fused"] & ~right[one.other]].tolist()
        assert list(one.lost) == videos[~right["fused"] & right[one.other]].tolist()
        assert one.gained and one.lost
        assert one.p_value == mcnemar(len(one.gained), len(one.lost))


def test_confusions_and_mistakes_by_hand(streams, report):
    fused, spatial = streams["fused"], streams["spatial"]
    predicted = fused.values.argmax(axis=1)
    wrong = np.flatnonzero(predicted != fused.labels)
    surest = wrong[np.argsort(-fused.values[wrong].max(axis=1))]
    found = mistakes(report)
    assert [one.video for one in found] == [fused.videos[row] for row in surest]
    row, one = surest[0], found[0]
    assert (one.truth, one.predicted) == (MANY[fused.labels[row]], MANY[predicted[row]])
    assert one.confidence == pytest.approx(fused.values[row].max())
    assert one.says["spatial"] == (
        MANY[spatial.values[row].argmax()],
        pytest.approx(softmax(spatial)[row].max()),
    )
    pairs = confusions(report)
    assert sum(count for *_, count in pairs) == len(wrong)
    assert [count for *_, count in pairs] == sorted((c for *_, c in pairs), reverse=True)
    truth, other, count = pairs[0]
    assert report.confusion[MANY.index(truth), MANY.index(other)] == count


def test_order_of_rows_and_columns_changes_no_figure(streams, report):
    shuffled = {name: shuffle(one, seed) for seed, (name, one) in enumerate(streams.items())}
    one, other = as_json([report])["splits"][0], as_json([evaluate(shuffled)])["splits"][0]
    assert one["methods"] == other["methods"]
    assert one["mistakes"] == other["mistakes"]
    for two in (one, other):
        two["per_class"].sort(key=lambda row: row["class"])
    assert one["per_class"] == other["per_class"]
    for here, there in zip(one["comparisons"], other["comparisons"], strict=True):
        assert sorted(here["gained"]) == sorted(there["gained"])
        assert sorted(here["lost"]) == sorted(there["lost"])


def test_between_equal_scores_the_first_name_ranks_higher():
    even = Scores("ab", ["y", "x"], np.full((2, 2), 0.5), [0, 1], {"kind": "softmax"})
    for scores in (even, shuffle(even, 0), shuffle(even, 1)):
        report = evaluate({"even": scores})
        assert report.methods["even"].top1.value == 0.5
        assert [one.truth for one in mistakes(report)] == ["y"]


def test_many_equal_scores_rank_by_name():
    names = [f"c{k:02d}" for k in range(40)]
    even = Scores(names, names, np.full((40, 40), 1 / 40), np.arange(40), {"kind": "softmax"})
    assert evaluate({"even": shuffle(even, 0)}).methods["even"].top5.value == 5 / 40
    assert evaluate({"even": even}).methods["even"].ranks.tolist() == list(range(40))


def test_videos_without_a_label_are_left_out_and_counted(streams):
    labels = streams["fused"].labels.copy()
    labels[::3] = -1
    unknown = {name: replace(one, labels=labels) for name, one in streams.items()}
    report = evaluate(unknown)
    known = labels >= 0
    predicted = streams["fused"].values.argmax(axis=1)
    assert report.unlabeled == (~known).sum()
    assert report.methods["fused"].top1.value == np.mean(predicted[known] == labels[known])
    assert f"{report.unlabeled} without a label left out" in methods_text(report)
    nothing = {name: replace(one, labels=np.full(len(labels), -1)) for name, one in unknown.items()}
    with pytest.raises(ScoresError, match="none of the 144 videos has a label"):
        evaluate(nothing)


def test_details_are_of_the_best_method_whatever_its_name_and_place(streams):
    best = streams["fused"]
    for order in (("a", "m", "z"), ("z", "m", "a"), ("m", "z", "a")):
        named = dict(zip(order, (best, streams["spatial"], streams["temporal"]), strict=True))
        report = evaluate(dict(sorted(named.items())))
        assert report.method == order[0]
        assert "highest top-1 of 3 methods" in report.reason
    alone = evaluate({"spatial": streams["spatial"]})
    assert (alone.method, alone.reason) == ("spatial", "the only method")
    report = evaluate(streams, method="spatial")
    assert (report.method, report.reason) == ("spatial", "as asked for")
    assert "in detail: spatial, as asked for" in as_text([report])
    with pytest.raises(ScoresError, match="of spatial, temporal, fused, got 'x'"):
        evaluate(streams, method="x")


def test_of_methods_that_are_equally_right_the_first_is_shown_and_said_to_share(streams):
    report = evaluate({"b": streams["fused"], "a": streams["fused"], "c": streams["spatial"]})
    assert report.method == "b"
    assert "one of 2 methods that share" in report.reason


def write_all(folder, streams):
    for name, scores in streams.items():
        write_scores(folder / name / "scores-test.npz", scores)
    return sorted(folder.glob("*/scores-test.npz"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """The files of three splits of UCF-101 and one of another data set."""
    folder = tmp_path_factory.mktemp("three")
    files = []
    for number in (1, 2, 3):
        streams = {
            "spatial": make_scores(seed=number, strength=1, split=f"ucf101-{number}"),
            "temporal": make_scores(seed=10 + number, strength=2, split=f"ucf101-{number}"),
        }
        streams["a"] = fuse(streams, Fusion("average"))
        files += write_all(folder / str(number), streams)
    return files + write_all(folder / "4", {"spatial": make_scores(split="mine")})


def test_files_make_a_report_for_each_split_with_fusions_last(three):
    reports = evaluate_files(three)
    assert [report.split for report in reports] == ["ucf101-1", "ucf101-2", "ucf101-3", "mine"]
    assert [list(report.methods) for report in reports] == [
        *[["spatial", "temporal", "a"]] * 3,
        ["spatial"],
    ]


def test_means_over_splits_stand_under_the_published_ones(three):
    reports = evaluate_files(three)
    table = mean_table(reports)
    published = {row.name: row.mean("ucf101") for row in table if row.published}
    assert published == {name: rate for name, rate, _ in PUBLISHED if rate is not None}
    assert published["Two-stream model, fusion by SVM"] == 0.88
    own = {row.name: row for row in table if not row.published}
    assert list(own) == ["spatial", "temporal", "a"]
    for name, row in own.items():
        expected = [one.methods[name].top1.value for one in reports[:3]]
        assert row.mean("ucf101") == pytest.approx(sum(expected) / 3)
    assert own["temporal"].mean("mine") is None
    assert own["spatial"].mean("mine") == reports[3].methods["spatial"].top1.value
    text = as_text(reports)
    assert re.search(r"^temporal +\d\d\.\d \(3\) +-$", text, re.MULTILINE)
    assert re.search(r"^Temporal stream ConvNet +83\.7 +-  \(published\)$", text, re.MULTILINE)
    hint = " ".join(page(reports).split())
    assert "Simonyan &amp; Zisserman 2014, table 4;" in hint
    assert "Feichtenhofer et al. 2016, tables 5 and 6" in hint
    assert [name for name, *_ in PUBLISHED if "VGG-16" in name] == [n for n, *_ in PUBLISHED_2016]


def test_rows_of_another_network_say_so_under_published_figures_and_only_there(tmp_path):
    def reports_of(data_set):
        files = []
        for number in (1, 2):
            streams = {
                "spatial": make_scores(seed=number, split=f"{data_set}-{number}", nets=["small"]),
                "temporal": make_scores(
                    seed=10 + number, split=f"{data_set}-{number}", nets=["cnn-m-2048"]
                ),
                "idt": make_scores(seed=20 + number, split=f"{data_set}-{number}"),
            }
            streams["both"] = fuse(streams, Fusion("average"))
            files += write_all(tmp_path / f"{data_set}-{number}", streams)
        return evaluate_files(files)

    reports = reports_of("ucf101")
    text = as_text(reports)
    noted = re.findall(r"^(\w+) .*  \(small: not the network of 2014\)$", text, re.MULTILINE)
    assert noted == ["spatial", "both"]
    assert page(reports).count("small: not the network of 2014") == 2
    assert "not the network of 2014" not in as_text(reports_of("mine"))


def test_published_rows_stand_only_beside_their_data_sets(streams):
    other = {name: replace(s, meta={**s.meta, "split": "mine-1"}) for name, s in streams.items()}
    assert not any(row.published for row in mean_table([evaluate(other)]))
    assert (data_set("ucf101-2"), data_set("folders-1"), data_set("all")) == (
        "ucf101",
        "folders",
        "all",
    )


def test_a_file_without_a_split_joins_the_only_one(tmp_path, three):
    nameless = tmp_path / "idt.npz"
    write_scores(nameless, make_scores(seed=8))
    [report] = evaluate_files([three[1], nameless])
    assert (report.split, list(report.methods)) == ("ucf101-1", ["spatial", "idt"])
    [report] = evaluate_files([nameless])
    assert report.split == ""
    with pytest.raises(ScoresError, match=r"name their split, as there are 4;.*idt\.npz"):
        evaluate_files([*three, nameless])


def test_json_holds_the_figures(report):
    data = json.loads(json.dumps(as_json([report]), allow_nan=False))
    [split] = data["splits"]
    assert split["methods"]["fused"]["top1"]["value"] == report.methods["fused"].top1.value
    assert split["confusion"] == report.confusion.tolist()
    assert len(split["per_class"]) == 12
    assert {row["name"] for row in data["mean_over_splits"]} >= {"spatial", "fused"}


def test_text_is_in_percent_with_intervals(report):
    text = as_text([report])
    top1 = report.methods["fused"].top1
    line = next(line for line in text.splitlines() if line.startswith("fused  "))
    assert f"{100 * top1.value:.1f} [{100 * top1.low:.1f}, {100 * top1.high:.1f}]" in line
    assert line.endswith("average of spatial, temporal")
    assert text.startswith("ucf101-1, test part: 144 videos of 12 classes, chance 8.3%")
    comparison = report.comparisons[0]
    assert (
        f"fused against spatial: {len(comparison.gained)} gained, {len(comparison.lost)} lost"
    ) in text
    groups = group_by_class(report, comparison.gained)
    for class_name, videos in groups[:5]:
        assert f"\n  + {class_name}: {len(videos)} ({videos[0]}" in text


def test_gains_are_grouped_by_class_the_largest_first(report):
    videos = [video for one in report.comparisons for video in one.gained]
    groups = group_by_class(report, videos)
    assert sorted(video for _, own in groups for video in own) == sorted(videos)
    assert [len(own) for _, own in groups] == sorted((len(own) for _, own in groups), reverse=True)
    assert len({name for name, _ in groups}) == len(groups)
    assert all(video.startswith(f"{name}/") for name, own in groups for video in own)


def test_a_list_of_gains_names_each_class_once(report):
    lines = [line for line in as_text([report]).splitlines() if line.startswith("  + class")]
    by_method = len(report.comparisons)
    named = [line.partition(":")[0] for line in lines]
    assert all(named.count(name) <= by_method for name in named)
    text = page([report])
    for items in re.findall(r'<ul class="videos">(.*?)</ul>', text, re.DOTALL):
        classes = re.findall(r"<li><b>(.*?)</b>", items)
        assert len(classes) == len(set(classes))


class Reader(HTMLParser):
    """Checks nesting, and collects tags, text and what a browser would fetch."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.fetched = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            value
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "xlink:href") and value[0] != "#"
        ]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def svgs(text):
    """The outermost SVG elements of a page."""
    found, begins = [], []
    for tag in re.finditer(r"<svg|</svg>", text):
        if tag[0] == "<svg":
            begins.append(tag.start())
        elif len(begins) > 1:
            begins.pop()
        else:
            found.append(ElementTree.fromstring(text[begins.pop() : tag.end()]))
    return found


def test_the_table_of_confusions_has_a_place_for_each_row_by_every_order(report):
    text = page([report])
    rows = re.findall(
        r'role="row" style="([^"]*)"><span role="cell">([^<]*)</span><span role="cell">([^<]*)'
        r'</span><span role="cell">(\d+)<',
        text,
    )
    found = confusions(report)
    assert [(truth, predicted, int(n)) for _, truth, predicted, n in rows] == found
    counts = dict(zip(report.classes, report.class_counts.tolist(), strict=True))
    keys = [
        lambda one: (-one[2], one[0], one[1]),
        lambda one: (-one[2] / counts[one[0]], one[0], one[1]),
        lambda one: (one[0], -one[2], one[1]),
        lambda one: (one[1], -one[2], one[0]),
    ]
    for number, key in enumerate(keys):
        places = [int(re.search(rf"--o{number}: (\d+)", style)[1]) for style, *_ in rows]
        by_place = [one for _, one in sorted(zip(places, found, strict=True))]
        assert by_place == sorted(found, key=key)
        assert f'class="o{number}"' in text
    assert "As a table" in text and "script" not in Reader(text).tags


def test_methods_are_reported_in_the_order_asked_for_and_no_more_than_asked(streams):
    chosen = evaluate(streams, chosen=["temporal", "spatial"])
    assert list(chosen.methods) == ["temporal", "spatial"]
    assert {one.other for one in chosen.comparisons} == {"temporal", "spatial"} - {chosen.method}
    rates = {name: one.top1.value for name, one in evaluate(streams).methods.items()}
    best = sorted(rates, key=rates.get, reverse=True)
    assert set(evaluate(streams, most=2).methods) == set(best[:2])
    assert set(evaluate(streams, most=1, method=best[2]).methods) == {best[2]}
    for wrong in ({"chosen": ["audio"]}, {"chosen": ["spatial"], "method": "temporal"}):
        with pytest.raises(ScoresError, match="expected a method of spatial"):
            evaluate(streams, **wrong)


def test_gains_by_class_are_gained_less_lost(report):
    for comparison in report.comparisons:
        own, other = (report.methods[name] for name in (report.method, comparison.other))
        net = dict(zip(report.classes, own.class_right - other.class_right, strict=True))
        found = class_gains(report, comparison)
        assert dict(found) == {name: videos for name, videos in net.items() if videos}
        assert [videos for _, videos in found] == sorted(dict(found).values(), reverse=True)
        name, videos = found[0]
        assert f"most gained: {name} +{videos}" in Reader(page([report])).text


def test_page_stands_alone(report):
    text = page([report])
    reader = Reader(text)
    assert reader.fetched == []
    assert "script" not in reader.tags and "link" not in reader.tags
    assert (
        "url(" not in text and "@import" not in text and "http" not in text.replace("http-eq", "")
    )
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text


def test_page_shows_the_figures(report):
    reader = Reader(page([report]))
    for method in report.methods.values():
        for rate in (method.top1, method.top5, method.mean_class):
            cell = f"{100 * rate.value:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
            assert cell in reader.text
    for one in report.comparisons:
        assert f"{len(one.gained)} videos gained" in reader.text
        assert all(video in reader.text for video in one.gained + one.lost)
    first = mistakes(report)[0]
    assert f"{first.truth} taken for {first.predicted}" in reader.text
    assert "UCF-101, split 1" in reader.text


def test_charts_draw_the_figures(report):
    charts = {}
    for svg in svgs(page([report])):
        charts.setdefault(svg.get("class").split()[0], []).append(svg)
    [matrix] = charts["matrix"]
    right = [r for r in matrix.iter("rect") if r.get("class") == "right"]
    wrong = [r for r in matrix.iter("rect") if r.get("class") == "wrong"]
    assert len(right) == np.count_nonzero(np.diag(report.confusion))
    assert len(right) + len(wrong) == np.count_nonzero(report.confusion)
    numbers = [int(t.text) for t in matrix.iter("text") if "number" in t.get("class", "")]
    assert sum(numbers) == 144
    rates = {name: class_rates(report, name) for name in report.methods}
    drawn = {svg.find("title").text.partition(",")[0]: svg for svg in charts["classes"]}
    assert set(drawn) == set(MANY)
    best_first = [rates["fused"][name].value for name in drawn]
    assert best_first == sorted(best_first, reverse=True)
    marks = method_marks(report)
    for name, svg in drawn.items():
        [bar] = [r for r in svg.iter("rect") if "bar" in r.get("class")]
        assert share(bar.get("width")) == pytest.approx(rates["fused"][name].value, abs=1e-4)
        dots = {use.get("href"): share(use.get("x")) for use in svg.iter("use")}
        assert dots == {
            f"#{marks[method].shape}": pytest.approx(rates[method][name].value, abs=1e-4)
            for method in ("spatial", "temporal")
        }
    assert len(charts["interval"]) == 3
    for svg in charts["gains"]:
        widths = {r.get("class"): share(r.get("width")) for r in svg.iter("rect")}
        lost, gained = (int(text.text.strip("−+")) for text in svg.iter("text"))
        assert widths["gained"] / widths["lost"] == pytest.approx(gained / lost, rel=0.01)


def share(percent):
    return float(percent.removesuffix("%")) / 100


def test_page_of_many_classes_and_splits(three):
    many = tuple(f"c{k:03d}" for k in range(101))
    wide = evaluate({"a": make_scores(classes=many, per_class=2, split="ucf101-1")})
    text = page([*evaluate_files(three)[1:], wide])
    reader = Reader(text)
    assert text.count("<h2>UCF-101, split") == 3
    assert "Mean accuracy over splits" in reader.text
    assert "Spatial stream ConvNet 73.0" in reader.text
    matrices = [svg for svg in svgs(text) if svg.get("class") == "matrix"]
    assert not any("number" in t.get("class", "") for t in matrices[-1].iter("text"))
    columns = [t for t in matrices[-1].iter("text") if t.get("class") == "faint"]
    assert [t.text for t in columns] == ["20", "40", "60", "80", "100"]
    assert columns[0].find("title").text == "c019"
    bars = [svg for svg in svgs(text) if svg.get("class") == "classes"]
    assert sum("c0" in svg.find("title").text for svg in bars) == 100


def test_top_5_is_a_headline_only_among_many_classes():
    def tiles(count):
        classes = [f"c{k:02d}" for k in range(count)]
        report = evaluate({"one": make_scores(classes=classes, per_class=2)})
        text = Reader(page([report])).text
        return text.partition("Methods")[0], text.partition("What")[0], as_text([report])

    for count, headline, column in ((4, False, False), (12, False, True), (20, True, True)):
        top, table, terminal = tiles(count)
        assert ("top-5" in top) == headline
        assert ("Top-5" in table) == ("top-5" in terminal) == column


def test_methods_differ_in_color_and_in_shape():
    streams = {f"m{k:02d}": make_scores(seed=k) for k in range(20)}
    marks = method_marks(evaluate(streams))
    assert len(set(marks.values())) == 20
    eight = list(marks.values())[:8]
    assert len({mark.color for mark in eight}) == len({mark.shape for mark in eight}) == 8


# Machado, Oliveira & Fernandes 2009, doi 10.1109/TVCG.2009.113, table 1, severity 1: linear RGB as
# seen without the cones for long, middle and short waves.
VISION = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def palettes():
    """sRGB, 0 to 1, of the colors m0 to m7 and of the ground below them, for light and dark."""
    css = files("flowkit").joinpath("report", "page.css").read_text()
    for scheme in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        values = dict(re.findall(r"--(\w+): #(\w{6})", scheme))
        names = [f"m{k}" for k in range(8)] + ["panel"]
        yield (
            np.array([[int(values[name][k : k + 2], 16) for k in (0, 2, 4)] for name in names])
            / 255
        )


def test_the_picture_in_the_docs_has_the_colors_of_the_page():
    light = next(palettes())
    with Image.open(Path(__file__).parents[1] / "docs/report.png") as picture:
        shown = {color[:3] for _, color in picture.convert("RGB").getcolors(1 << 24)}
    assert {tuple(color) for color in np.rint(255 * light[:3]).astype(int).tolist()} <= shown


def linear(colors):
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("colors", list(palettes()), ids=["light", "dark"])
def test_colors_differ_from_each_other_and_from_the_ground_for_every_eye(colors):
    luminance = linear(colors) @ (0.2126, 0.7152, 0.0722)
    high, low = np.maximum(luminance[:8], luminance[8]), np.minimum(luminance[:8], luminance[8])
    assert ((high + 0.05) / (low + 0.05) >= 3).all()  # WCAG 2.2, 1.4.11: graphics
    for vision in VISION.values():
        seen = np.clip(linear(colors[:8]) @ np.transpose(vision), 0, 1)
        encoded = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
        lab = cv2.cvtColor(encoded[None].astype(np.float32), cv2.COLOR_RGB2Lab)[0]
        apart = np.linalg.norm(lab[:, None] - lab, axis=2)[np.triu_indices(8, 1)]
        assert apart.min() > 15  # a difference of 2.3 is just noticeable


HOSTILE = '</title><script>alert(1)</script>" onload="x'


def test_hostile_names_are_only_text(tmp_path):
    classes = (f"{HOSTILE}a", f"{HOSTILE}b", "c\udce9")
    videos = [f"{HOSTILE}{k}\udce9" for k in range(6)]
    values = np.random.default_rng(0).normal(size=(6, 3))
    meta = {"kind": "logits", "split": HOSTILE, "about": HOSTILE}
    scores = Scores(videos, classes, values, [0, 1, 2, 0, 1, 2], meta)
    report = evaluate({HOSTILE: scores, "other": replace(scores, values=-values)})
    extras = Extras(
        missing={video: HOSTILE for video in videos},
        curves={HOSTILE: {"loss": [(1, 2), (2, 1)]}},
        sources=[HOSTILE],
    )
    text = page([report], extras)
    assert "<script" not in text
    assert all(svg.tag == "svg" for svg in svgs(text.replace("\udce9", "?")))
    Reader(text)
    write_page(tmp_path / "a" / "report.html", text)
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8").count("\\udce9") > 5
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["report.html"]
    json.dumps(as_json([report])).encode()


def test_pictures_of_mistakes_come_from_their_records(tmp_path, report):
    wrong = [one.video for one in mistakes(report)[:3]]
    field = np.zeros((4, 30, 40, 2), np.float32)
    field[..., 0] = 2  # right: red
    frames = np.full((5, 30, 40, 3), (200, 100, 50), np.uint8)
    write_record(tmp_path, wrong[0], field, frames=frames)
    write_record(tmp_path, wrong[1], field)
    pictures, missing = read_pictures(tmp_path, wrong)
    assert set(pictures) == set(wrong[:2])
    assert missing == {wrong[2]: f"no flow record below {tmp_path}"}
    assert pictures[wrong[1]].frame is None
    assert decode(pictures[wrong[0]].flow)[15, 20] == pytest.approx([0, 0, 255], abs=3)  # BGR
    assert decode(pictures[wrong[0]].frame)[15, 20] == pytest.approx([200, 100, 50], abs=3)
    text = page([report], Extras(pictures=pictures, missing=missing, mistakes=3))
    reader = Reader(text)
    assert reader.tags.count("img") == 3 and reader.tags.count("figure") == 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in reader.fetched)
    assert f"no flow record below {tmp_path}" in reader.text


def test_a_damaged_record_costs_only_its_own_picture(tmp_path, report):
    wrong = [one.video for one in mistakes(report)[:2]]
    field = np.ones((4, 30, 40, 2), np.float32)
    for video in wrong:
        write_record(tmp_path, video, field)
    for file in (tmp_path / wrong[0]).glob("flow_*"):
        file.write_bytes(b"")
    pictures, missing = read_pictures(tmp_path, wrong)
    assert set(pictures) == {wrong[1]}
    assert set(missing) == {wrong[0]}


def decode(uri):
    data = base64.b64decode(uri.partition(",")[2])
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def write_log(folder, rows, columns=("step", "learning_rate", "loss", "heldout_accuracy")):
    folder.mkdir(exist_ok=True)
    with (folder / "log.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_curves_are_the_losses_and_accuracies_of_a_run(tmp_path, report):
    assert read_curves(tmp_path) == {}
    write_log(
        tmp_path, [(10, 0.1, 2.5, ""), (20, 0.1, "nan", 0.25), (30, 0.1, 1.5, ""), (40, 0.1, 1)]
    )
    curves = read_curves(tmp_path)
    assert curves == {"loss": [(10, 2.5), (30, 1.5)], "heldout_accuracy": [(20, 0.25)]}
    text = page([report], Extras(curves={"runs/spatial": curves}))
    charts = [svg for svg in svgs(text) if svg.get("class") == "curves"]
    assert "runs/spatial: loss" in Reader(text).text
    [line] = charts[0].iter("polyline")
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.get("points").split())
    assert x0 < x1 and y0 < y1  # the loss goes down, and y grows downward
    [dot] = charts[1].iter("polyline")
    assert "dot" in dot.get("class")


def test_curves_of_a_chart_differ_in_color_and_dashes():
    names = [f"task {k} loss" for k in range(8)]
    chart = ElementTree.fromstring(
        curve_chart({name: [(1, 2), (2, 1)] for name in names}, percent=False)
    )
    styles = [line.get("class") for line in chart.iter("polyline")]
    assert len(set(styles)) == 8
    assert [line.find("title").text for line in chart.iter("polyline")] == names


def test_numbers_beside_a_chart_are_round_and_reach_its_top():
    assert round_values(10) == [0, 2.5, 5, 7.5, 10]
    assert round_values(0.9) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for high in (1e-12, 0.03, 2.31, 77, 12345):
        values = round_values(high)
        assert values[0] == 0 and values[-1] >= high * 0.999 and 3 <= len(values) <= 8


def test_a_picture_of_curves_is_one_svg_with_a_panel_each():
    curve = [(0, 2.0), (10, 0.5)]
    text = draw_curves(
        {"loss": {"training": curve, "held out": []}, "accuracy": {"training": []}},
        percent=["accuracy"],
    )
    picture = ElementTree.fromstring(text)
    assert picture.tag.endswith("}svg")
    texts = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss", "accuracy", "training", "2"} <= set(texts) and "held out" not in texts


def test_a_picture_of_curves_has_the_colors_of_the_page():
    css = files("flowkit.report").joinpath("page.css").read_text()
    colors = re.findall(r"\.m(\d) \{ color: (#\w{6}); \}", draw_curves({}))
    assert len(colors) == 2
    assert all(f"--m{number}: {color};" in css for number, color in colors)


def test_long_curves_are_thinned_to_means(tmp_path):
    write_log(tmp_path, [(step, 0.1, step % 2, "") for step in range(1, 4001)])
    curve = read_curves(tmp_path)["loss"]
    assert len(curve) == 400
    assert curve[-1][0] == 4000
    assert {value for _, value in curve} == {0.5}


def test_a_log_that_is_none_is_refused(tmp_path):
    write_log(tmp_path, [("ten", 0.1, 2.5, "")])
    with pytest.raises(ScoresError, match=r"log\.csv: .*step and loss, got 'ten'"):
        read_curves(tmp_path)
    write_log(tmp_path, [], ("epoch", "loss"))
    with pytest.raises(ScoresError, match="expected a column called step, got epoch, loss"):
        read_curves(tmp_path)
    (tmp_path / "log.csv").write_bytes(b"step,loss\n\xff\xfe,1\n")
    with pytest.raises(ScoresError, match="expected the CSV file of a training"):
        read_curves(tmp_path)


def test_perfect_and_hopeless_scores_make_a_page():
    perfect = make_scores()
    perfect = replace(perfect, values=np.eye(5)[perfect.labels])
    hopeless = replace(perfect, values=np.roll(perfect.values, 1, axis=1))
    report = evaluate({"perfect": perfect, "hopeless": hopeless})
    assert report.method == "perfect"
    text = page([report])
    Reader(text)
    assert "100.0%" in text and "Most confident mistakes" not in text
    assert math.isclose(report.comparisons[0].p_value, 2 * 0.5**60)
    Reader(page([evaluate({"hopeless": hopeless})]))
