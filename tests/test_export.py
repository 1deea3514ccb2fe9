"""Export: the file gives the network's outputs, for any batch, and says what it takes."""

import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from made_records import write_record
from made_runs import write_run

from flowkit._cv2 import cv2
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import inputs_from_json
from flowkit.data.stacks import StackForm
from flowkit.errors import ExportError, InstallError, UsageError
from flowkit.evaluation.scoring import Scorer
from flowkit.networks import export
from flowkit.networks.checkpoints import load_net
from flowkit.networks.export import export_net
from flowkit_cli.export import export as export_command

TASKS = {"main": ("grow", "shrink", "spin"), "aux": ("x", "y")}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "temporal", form=StackForm(2), tasks=TASKS)


@pytest.fixture
def inputs():
    return torch.randn(5, 4, 32, 32, generator=torch.Generator().manual_seed(1))


def expected(run, inputs):
    with torch.no_grad():
        return load_net(run)[1](inputs).numpy()


def check_description(text):
    said = json.loads(text)
    assert (said["format"], said["version"]) == ("flowkit export", 2)
    assert {task: tuple(names) for task, names in said["tasks"].items()} == TASKS
    assert (said["crop"], said["short_side"]) == (32, 36)
    assert inputs_from_json(said["inputs"]) == {"temporal": StackForm(2)}
    assert "training" not in said


def test_torchscript_gives_the_same(tmp_path, run, inputs):
    out = tmp_path / "to/net.pt"
    assert export_net(run, out, format="torchscript") < 1e-5
    extra = {"flowkit.json": ""}
    with pytest.warns(FutureWarning):
        net = torch.jit.load(out, _extra_files=extra)
    with torch.no_grad():
        np.testing.assert_allclose(net(inputs), expected(run, inputs), atol=1e-4)
    check_description(extra["flowkit.json"])
    assert [path.name for path in out.parent.iterdir()] == ["net.pt"]


@pytest.mark.slow
def test_onnx_gives_the_same(tmp_path, run, inputs):
    reason = "ONNX is not installed: pip install onnx onnxscript onnxruntime"
    runtime = pytest.importorskip("onnxruntime", reason=reason)
    pytest.importorskip("onnxscript", reason=reason)
    out = tmp_path / "net.onnx"
    assert export_net(run, out, format="onnx") < 1e-3
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    [logits] = session.run(["logits"], {"input": inputs.numpy()})
    np.testing.assert_allclose(logits, expected(run, inputs), atol=1e-3)
    check_description(session.get_modelmeta().custom_metadata_map["flowkit.json"])


def test_an_export_that_differs_is_refused_and_not_kept(tmp_path, run, monkeypatch):
    original = export._write_torchscript

    def turned(*arguments):
        net = original(*arguments)
        return lambda inputs: net(inputs.flip(-1))

    monkeypatch.setattr(export, "_write_torchscript", turned)
    with pytest.raises(ExportError, match=r"differs .* nothing was written"):
        export_net(run, tmp_path / "net.pt", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(tmp_path, run, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InstallError, match="pip install onnx onnxscript onnxruntime"):
        export_net(run, tmp_path / "net.onnx", format="onnx")
    with pytest.raises(UsageError, match="a format of onnx or torchscript, got 'caffe'"):
        export_net(run, tmp_path / "net", format="caffe")


@pytest.mark.parametrize(
    "form",
    [
        FrameForm(),
        pytest.param(FrameForm(3, 2), marks=pytest.mark.slow),
        FrameForm(2, 3, "rgb-diff"),
    ],
    ids=lambda form: form.about,
)
def test_a_video_is_scored_by_what_the_file_says(tmp_path, form):
    """The exported spatial network, the frames of a record, and the JSON: nothing of flowkit's."""
    fields, random = np.zeros((29, 40, 50, 2), np.float32), np.random.default_rng(0)
    frames = random.integers(0, 256, (30, 40, 50, 3), dtype=np.uint8)
    record = write_record(tmp_path, "a", fields, frames=frames)
    own = write_run(tmp_path / "run", form=form)
    export_net(own, tmp_path / "net.pt", format="torchscript")
    extra = {"flowkit.json": ""}
    with pytest.warns(FutureWarning):
        net = torch.jit.load(tmp_path / "net.pt", _extra_files=extra)
    said = json.loads(extra["flowkit.json"])
    scoring = said["scoring"]
    count, every = form.count + form.differences, form.every
    reach = (count - 1) * every
    first = f"moment - {reach // 2}, moved into 0..max(0, N - 1 - {reach})"
    told = ("frame", "moment") if form == FrameForm() else ("first_frame", first)
    assert told in scoring["spatial"].items()
    moments, crop = scoring["moments"], said["crop"]
    mean, deviation = (np.array(scoring["spatial"][key]) for key in ("mean", "deviation"))
    total = 0
    for k in range(moments):
        number = (2 * k * 29 + moments - 1) // (2 * (moments - 1))
        start = min(max(number - reach // 2, 0), max(0, 29 - reach))
        seen = []
        for n in range(count):
            image = record.frame(start + n * every)  # BGR as it is stored
            image = cv2.resize(image, (45, 36), interpolation=cv2.INTER_AREA)
            seen.append(((image[..., ::-1] / 255 - mean) / deviation).transpose(2, 0, 1))
        rgb = np.concatenate(np.diff(seen, axis=0) if form.differences else seen)
        down, right = 36 - crop, 45 - crop
        places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        cuts = [rgb[:, top : top + crop, left : left + crop] for top, left in places]
        views = np.stack(cuts + [cut[..., ::-1] for cut in cuts]).astype(np.float32)
        with torch.no_grad():
            total = total + net(torch.from_numpy(views)).double().softmax(1).mean(0).numpy()
    [expected] = Scorer(own).score([record])
    np.testing.assert_allclose(total / moments, expected, atol=1e-6)


def test_the_command_writes_beside_the_checkpoint(run):
    result = CliRunner().invoke(export_command, [str(run), "--format", "torchscript"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{run} -> {run / 'best.pt'}; outputs agree to ")
    assert (run / "best.pt").exists()
