"""A choice is written once: a made-up row of a table is seen wherever one chooses."""

import json
import subprocess
import sys

# What adds a row to a table before the command line is imported, and where the row must be seen.
ROWS = {
    "flow method": (
        "from flowkit.flow.methods import METHODS, MethodFacts\n"
        "METHODS['made-up'] = MethodFacts('flowkit.flow.opencv:DIS')",
        "extract",
    ),
    "format": (
        "from flowkit.records.layout import FORMATS, Format\n"
        "FORMATS['made-up'] = Format('as nobody stores it', ('xy',), 'floats')",
        "extract",
    ),
    "layout that is written": (
        "from flowkit.records.layout import LAYOUTS, Layout\n"
        "LAYOUTS['made-up'] = Layout('as nobody names files', written=True)",
        "extract",
    ),
    "layout that is read": (
        "from flowkit.records.layout import LAYOUTS, Layout\n"
        "LAYOUTS['made-up'] = Layout('as nobody names files', (('x%d', 'y%d'),), 'i%d')",
        "stack",
    ),
    "stacking": (
        "from flowkit.data.stacks import STACKINGS\nSTACKINGS['made-up'] = 'upside down'",
        "stack",
    ),
    "stacking of a training": (
        "from flowkit.data.stacks import STACKINGS\nSTACKINGS['made-up'] = 'upside down'",
        "train temporal",
    ),
    "features of linear SVMs": (
        "from flowkit.idt.parameters import FEATURES\nFEATURES['made-up'] = FEATURES['hmax']",
        "train svm",
    ),
    "input of the spatial stream": (
        "from flowkit.data.frames import FRAME_INPUTS\n"
        "FRAME_INPUTS['made-up'] = FRAME_INPUTS['rgb-diff']",
        "train spatial",
    ),
    "stream of frames that predicts": (
        "from flowkit.data.frames import FRAME_INPUTS\n"
        "FRAME_INPUTS['made-up'] = FRAME_INPUTS['rgb-diff']",
        "predict",
    ),
    "first layer": (
        "from flowkit.networks.table import FIRST_LAYERS\nFIRST_LAYERS['made-up'] = 'upside down'",
        "train spatial",
    ),
    "network": (
        "from flowkit.networks.table import NETS\nNETS['made-up'] = NETS['small']",
        "train spatial",
    ),
    "recipe": (
        "from flowkit.training.recipes import RECIPES\nRECIPES['made-up'] = RECIPES['short']",
        "train temporal",
    ),
    "join of two towers": (
        "from flowkit.networks.joining import JOINS\nJOINS['made-up'] = 'by magic'",
        "train towers",
    ),
    "recipe of towers": (
        "from flowkit.training.recipes import TOWER_RECIPES\n"
        "TOWER_RECIPES['made-up'] = TOWER_RECIPES['short']",
        "train towers",
    ),
    "views of an evaluation": (
        "from flowkit.data.clips import VIEWS\nVIEWS['made-up'] = VIEWS['center']",
        "eval",
    ),
    "views of a prediction": (
        "from flowkit.data.clips import VIEWS\nVIEWS['made-up'] = VIEWS['center']",
        "predict",
    ),
    "format of features": (
        "from flowkit.evaluation.feature_files import FEATURE_FORMATS\n"
        "FEATURE_FORMATS['made-up'] = FEATURE_FORMATS['npy']",
        "features",
    ),
    "tool that reads lists": (
        "from flowkit.data.exported_lists import LIST_TOOLS\n"
        "LIST_TOOLS['made-up'] = LIST_TOOLS['tsn']",
        "split export",
    ),
    "fusion": (
        "from flowkit.scores.fusion import FUSIONS, Rule\n"
        "FUSIONS['made-up'] = Rule('whatever', combine=lambda stacked, fusion, names: stacked[0])",
        "fuse",
    ),
}


# The help of each row's command, in a fork of an interpreter that has imported nothing of flowkit.
HELPS = """
import contextlib, io, json, os, sys
import click, numpy
for row, (adding, command) in json.loads(sys.argv[1]).items():
    if os.fork():
        os.wait()
        continue
    exec(adding)
    from flowkit_cli.main import main
    sys.argv = ["flowkit", *command.split(), "--help"]
    said = io.BytesIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.TextIOWrapper(said)):
        main()
    print(json.dumps([row, said.getvalue().decode()]), flush=True)
    os._exit(0)
"""


def test_a_row_of_a_table_is_a_choice_of_the_command_line():
    done = subprocess.run(
        [sys.executable, "-c", HELPS, json.dumps(ROWS)], capture_output=True, text=True, timeout=60
    )
    helps = dict(map(json.loads, done.stdout.splitlines()))
    assert [row for row in ROWS if "made-up" not in helps.get(row, "")] == [], done.stderr


def test_help_of_a_storage_choice_says_what_each_is():
    code = (
        "import sys; sys.argv = ['flowkit', 'extract', '--help']; from flowkit_cli.main import main"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; main()"], capture_output=True, text=True, check=False
    )
    help = " ".join(done.stdout.split())
    assert "lz4: 8-bit planes, lossless, quick to read" in help
    assert "twostreamfusion: u/, v/ and jpegs_256/" in help


def test_an_input_a_network_a_recipe_and_views_of_a_made_up_name_work(monkeypatch):
    """What the library does by name it does by the row alone."""
    from dataclasses import replace

    import torch

    from flowkit.data.clips import VIEWS, View, ViewSet
    from flowkit.data.frames import FRAME_INPUTS, FrameForm
    from flowkit.data.inputs import inputs_from_json, inputs_to_json, stream_name
    from flowkit.evaluation.scoring import TestViews
    from flowkit.networks.streams import build_stream
    from flowkit.networks.table import NETS
    from flowkit.training.recipes import RECIPES, make_recipe

    monkeypatch.setitem(FRAME_INPUTS, "made-up", FRAME_INPUTS["rgb-diff"])
    inputs = inputs_from_json(inputs_to_json({"spatial": FrameForm(2, 1, "made-up")}))
    assert stream_name(inputs) == "made-up"
    monkeypatch.setitem(NETS, "made-up", replace(NETS["small"], sides=(64, 64)))
    net = build_stream("made-up", "temporal", {"main": 3}, channels=4)
    assert net(torch.zeros(2, 4, 64, 64)).shape == (2, 3)
    short = replace(RECIPES["short"].recipe, steps=7, drop_at=())
    monkeypatch.setitem(RECIPES, "made-up", replace(RECIPES["short"], recipe=short))
    assert make_recipe("made-up", "scratch").steps == 7

    def whole(size, *, crop, short_side):
        return [View(size, 0, 0, *size)]

    monkeypatch.setitem(VIEWS, "made-up", ViewSet(1, "the whole frame", whole))
    assert TestViews(crops="made-up").crops == "made-up"
