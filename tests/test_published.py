"""Published two-stream weights: a plain forward pass's logits, and what is refused in one line."""

import pickle
from dataclasses import replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from command import run_here
from made_published import fill, i3d_forward, i3d_shapes, tsn_forward, tsn_shapes
from made_records import write_record
from made_training import make_job, make_split, write_videos
from made_videos import moving_texture, write_video
from safetensors.torch import save_file
from torch import nn

from flowkit.data.augment import RGB_MEAN, RGB_STD
from flowkit.data.frames import FrameForm
from flowkit.data.inputs import Inputs
from flowkit.data.stacks import StackForm
from flowkit.errors import CheckpointError, FlowkitError, UsageError
from flowkit.evaluation.held_records import video_request
from flowkit.evaluation.scoring import Scorer
from flowkit.evaluation.views import TestViews, default_views
from flowkit.networks.checkpoints import load_net, read_checkpoint
from flowkit.networks.export import _describe_scoring
from flowkit.networks.joining import tower_seams
from flowkit.networks.published import adopt, write_adopted
from flowkit.networks.streams import build_net
from flowkit.networks.weights import load_weights, read_weights
from flowkit.records.foreign import open_foreign
from flowkit.training.distributed import Ranks
from flowkit.training.jobs import Machine
from flowkit.training.loop import train

MEAN = torch.tensor([104.0, 117.0, 128.0])[:, None, None]  # of B, G, R
NAMES = [f"class {number}" for number in range(5)]
ALONE = Ranks(0, 1, torch.device("cpu"))
CENTER = TestViews(2, "center", "logits")


@pytest.fixture(scope="module")
def tsn():
    """Tensors of a published TSN by the channels of its input."""
    return {channels: fill(tsn_shapes(channels, len(NAMES))) for channels in (3, 10, 15)}


@pytest.fixture(scope="module")
def i3d():
    return {channels: fill(i3d_shapes(channels, len(NAMES))) for channels in (2, 3)}


def adopted(folder, tensors, net, *, length=None, name="published.pth"):
    """The run of tensors that lie in a file, read back: its checkpoint and network."""
    file = folder / name
    torch.save(tensors, file)
    write_adopted(folder / "run", *adopt(file, net, NAMES, length=length))
    return load_net(folder / "run")


def pixels(*shape):
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, shape, generator=random).float()


def standardized(rgb):
    """Frames (..., 3, h, w) of 0..255 as flowkit's networks take them."""
    mean, std = (torch.from_numpy(three)[:, None, None] for three in (RGB_MEAN, RGB_STD))
    return (rgb / 255 - mean) / std


def in_px(codes):
    """Displacements of the codes that tools with a bound of 20 px write by rounding."""
    return (codes - 127.5) * 40 / 255


def check(found, expected):
    assert 0.05 < expected.std() < 3
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tsns_frames_flow_and_differences_are_answered_as_by_a_plain_forward(tsn, tmp_path):
    rgb, codes = pixels(2, 6, 3, 64, 64), pixels(2, 10, 64, 64)
    ours = standardized(rgb)
    given = {
        3: ({"spatial": FrameForm()}, rgb[:, 0].flip(1) - MEAN, ours[:, 0]),
        10: ({"temporal": StackForm(5, mean_subtract=False)}, codes - 128, in_px(codes)),
        15: (
            {"spatial": FrameForm(5, kind="rgb-diff")},
            (rgb[:, 1:] - rgb[:, :-1]).flip(2).flatten(1, 2),
            (ours[:, 1:] - ours[:, :-1]).flatten(1, 2),
        ),
    }
    for channels, (inputs, theirs, own) in given.items():
        folder = tmp_path / str(channels)
        folder.mkdir()
        state = {"epoch": 3, "arch": "BNInception", "best_prec1": torch.tensor(85.0)}
        state["state_dict"] = {f"module.{name}": one for name, one in tsn[channels].items()}
        checkpoint, net = adopted(folder, state, "bninception", name="flow_checkpoint.pth.tar")
        assert checkpoint.inputs == inputs
        check(net(own), tsn_forward(tsn[channels], theirs))


# Odd and even numbers of moments on the way
@pytest.mark.parametrize("frames", [9, pytest.param(12, marks=pytest.mark.slow)])
@torch.no_grad()
def test_i3ds_frames_and_flow_are_answered_as_by_a_plain_forward(frames, i3d, tmp_path):
    rgb, codes = pixels(1, frames, 3, 64, 64), pixels(1, frames, 2, 64, 64)
    for channels, theirs, own in ((3, rgb, standardized(rgb)), (2, codes, in_px(codes))):
        folder = tmp_path / str(channels)
        folder.mkdir()
        checkpoint, net = adopted(folder, i3d[channels], "i3d", length=frames)
        [form] = checkpoint.inputs.values()
        assert form == (
            FrameForm(frames) if channels == 3 else StackForm(frames, mean_subtract=False)
        )
        expected = i3d_forward(i3d[channels], theirs.transpose(1, 2) / 127.5 - 1)
        check(net(own.flatten(1, 2)), expected)


def test_every_naming_of_published_files_gives_the_same_tensors(tsn, i3d, tmp_path):
    def read(tensors, net, name="named.pth", **how):
        torch.save(tensors, tmp_path / name, **how)
        return adopt(tmp_path / name, net, NAMES)[1]

    def renamed(tensors, *pairs):
        found = {}
        for name, tensor in tensors.items():
            for old, new in pairs:
                name = name.replace(old, new)
            found[name] = tensor
        return found

    expected = read(tsn[10], "bninception")
    flat = {name: tensor[None] if "_bn." in name else tensor for name, tensor in tsn[10].items()}
    for same in (
        renamed(tsn[10], ("base_model.", "backbone."), ("new_fc", "cls_head.fc_cls")),
        renamed(tsn[10], ("new_fc", "base_model.fc-action.1")),
        renamed(tsn[10], ("new_fc", "base_model.fc_action.1")),
        renamed(flat, ("base_model.", ""), ("new_fc", "last_linear")),
        renamed(flat, ("base_model.", ""), ("new_fc", "fc")),
    ):
        found = read(same, "bninception")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    found = read(tsn[10], "bninception", _use_new_zipfile_serialization=False)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    save_file(tsn[10], tmp_path / "named.safetensors")
    found = adopt(tmp_path / "named.safetensors", "bninception", NAMES)[1]
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    branches = {"b0": "0", "b1a": "1.0", "b1b": "1.1", "b2a": "2.0", "b2b": "2.1", "b3b": "3.1"}
    other = renamed(
        {name: tensor for name, tensor in i3d[2].items() if "tracked" not in name},
        ("logits", "conv3d_0c_1x1"),
        ("Conv3d_", "conv3d_"),
        ("Mixed_", "mixed_"),
        (".bn.", ".batch3d."),
        *((f".{ours}.", f".branch_{theirs}.") for ours, theirs in branches.items()),
    )
    assert "mixed_5c.branch_3.1.batch3d.running_var" in other
    found, expected = read(other, "i3d"), read(i3d[2], "i3d")
    assert found.keys() == expected.keys()
    assert all(
        torch.equal(found[name], expected[name]) for name in expected if "tracked" not in name
    )


def real_clip(data, count):
    """`count` frames of a real clip, uint8 (count, 256, 340, 3) BGR, and codes of their flow."""
    clip = cv2.VideoCapture(str(sorted((data / "ucf101").glob("*/*.avi"))[0]))
    frames = [cv2.resize(clip.read()[1], (340, 256)) for _ in range(count)]
    gray = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    fields = np.stack([method.calc(a, b, None) for a, b in pairwise(gray)])
    codes = np.rint(255 * (np.clip(fields, -20, 20) + 20) / 40).astype(np.uint8)
    return np.stack(frames), codes


def write_images(folder, frames, codes, names):
    """Images by the templates of `names`, numbered from 1: frame, x and y."""
    folder.mkdir(parents=True)
    for number, (frame, code) in enumerate(zip(frames, codes, strict=False), start=1):
        for name, image in zip(names, (frame, code[..., 0], code[..., 1]), strict=True):
            cv2.imwrite(str(folder / (name % number)), image, [cv2.IMWRITE_JPEG_QUALITY, 95])


def read_center(folder, name, numbers, way=cv2.IMREAD_GRAYSCALE):
    """What their loaders read, the center of images as written: float32 (N, 224, 224, ...)."""
    images = [cv2.imread(str(folder / (name % number)), way) for number in numbers]
    return torch.from_numpy(np.stack(images)[:, 16:240, 58:282].astype(np.float32))


@pytest.mark.slow
@torch.no_grad()
def test_real_planes_in_tsns_layout_score_as_tsn_scores_them(real_data, tsn, tmp_path):
    frames, codes = real_clip(real_data, 12)
    names = ("img_%05d.jpg", "flow_x_%05d.jpg", "flow_y_%05d.jpg")
    write_images(tmp_path / "clip", frames[1:], codes, names)
    record = open_foreign(tmp_path / "clip", layout="tsn", bound=20)
    for channels in (3, 10):
        folder = tmp_path / str(channels)
        folder.mkdir()
        adopted(folder, tsn[channels], "bninception")
        scorer = Scorer(folder / "run", views=CENTER)
        [(places, found)] = scorer.logits(record)
        for [[look]], logits in zip(places, found, strict=True):
            if channels == 3:
                number = max(look.start, 1)  # the first frame is not stored
                image = read_center(tmp_path / "clip", names[0], [number], cv2.IMREAD_COLOR)
                theirs = image.permute(0, 3, 1, 2) - MEAN
            else:
                numbers = range(look.start + 1, look.start + 6)
                x, y = (read_center(tmp_path / "clip", name, numbers) for name in names[1:])
                theirs = torch.stack([x, y], 1).flatten(0, 1)[None] - 128
            check(logits, tsn_forward(tsn[channels], theirs)[0])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [3, 2])
@torch.no_grad()
def test_a_real_clip_in_pytorch_i3ds_layout_scores_as_i3d_scores_it(
    channels, real_data, i3d, tmp_path
):
    frames, codes = real_clip(real_data, 66)
    names = ("clip-%06d.jpg", "clip-%06dx.jpg", "clip-%06dy.jpg")
    write_images(tmp_path / "clip", frames, codes, names)
    record = open_foreign(tmp_path / "clip", layout="pytorch-i3d", bound=20)
    adopted(tmp_path, i3d[channels], "i3d")
    scorer = Scorer(tmp_path / "run", views=TestViews(1, "center", "logits"))
    [(places, found)] = scorer.logits(record)
    [[[look]]] = places
    numbers = range(look.start + 1, look.start + 65)
    if channels == 3:
        rgb = read_center(tmp_path / "clip", names[0], numbers, cv2.IMREAD_COLOR).flip(3)
        theirs = rgb.permute(3, 0, 1, 2)
    else:
        theirs = torch.stack([read_center(tmp_path / "clip", one, numbers) for one in names[1:]])
    check(found[0], i3d_forward(i3d[channels], theirs[None] / 255 * 2 - 1)[0])


def test_a_key_missing_or_unfit_and_other_files_are_one_clear_line(tsn, i3d, tmp_path):
    def refusal(tensors, net="bninception", names=NAMES, error=CheckpointError, **options):
        torch.save(tensors, tmp_path / "odd.pth")
        with pytest.raises(error) as caught:
            adopt(tmp_path / "odd.pth", net, names, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def without(tensors, *names):
        return {name: tensor for name, tensor in tensors.items() if name not in names}

    gone = "base_model.inception_4c_double_3x3_2_bn.running_var"
    assert "missing or unfit 1: inception_4c.double_3x3_2_bn.running_var (160,)" in refusal(
        without(tsn[3], gone)
    )
    assert "(160,) (got (161,))" in refusal(tsn[3] | {gone: torch.ones(161)})
    assert "unknown 1: more" in refusal(tsn[3] | {"more": torch.ones(1)})
    assert "Mixed_4f.b1b.conv3d.weight (320, 160, 3, 3, 3)" in refusal(
        without(i3d[2], "Mixed_4f.b1b.conv3d.weight"), "i3d"
    )
    first = {"base_model.conv1_7x7_s2.weight": torch.ones(64, 7, 7, 7)}
    assert "3 or 10 or 15 channels, got 7" in refusal(tsn[3] | first)
    assert "has no conv1_7x7_s2.weight, the first layer of bninception" in refusal(i3d[3])
    assert "has no Conv3d_1a_7x7.conv3d.weight, the first layer of i3d" in refusal(tsn[3], "i3d")
    assert "has no last layer" in refusal(without(tsn[3], "new_fc.bias"))
    assert "expected a last layer's weight (5, 1024), got (5, 9)" in refusal(
        tsn[3] | {"new_fc.weight": torch.ones(5, 9)}
    )
    assert "the names of its 5 classes, got 4" in refusal(tsn[3], names=NAMES[1:], error=UsageError)
    assert "got several times: class 0" in refusal(
        tsn[3], names=[*NAMES[:4], NAMES[0]], error=UsageError
    )
    assert "leave --stack out" in refusal(tsn[3], length=5, error=UsageError)
    assert "a stack of 9 frames or fields or more" in refusal(
        i3d[3], "i3d", length=8, error=UsageError
    )
    for odd in (torch.ones(160).to_sparse(), torch.ones(160, device="meta"), torch.ones(160) * 1j):
        assert f"dense tensors of real numbers, got others: {gone}" in refusal(tsn[3] | {gone: odd})
    assert "got NaN or infinity in inception_4c.double_3x3_2_bn.running_var" in refusal(
        tsn[3] | {gone: torch.full((160,), torch.inf)}
    )
    assert "bninception and i3d, got resnet18" in refusal(tsn[3], "resnet18", error=UsageError)


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


def test_what_needs_pickle_is_never_run(tsn, tmp_path, capsys):
    torch.save({"state_dict": tsn[3], "optimizer": Bomb()}, tmp_path / "a.pth.tar")
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"state_dict": Bomb()}))
    (tmp_path / "c.caffemodel").write_bytes(b"\x0a\x04name")
    for name, message in (
        ("a.pth.tar", r"a file of tensors alone, .* \(it holds print\)$"),
        ("b.pt", "a file of tensors alone"),
        ("c.caffemodel", r"expected \.safetensors, \.pth"),
    ):
        with pytest.raises(FlowkitError, match=message):
            adopt(tmp_path / name, "bninception", NAMES)
    assert capsys.readouterr().out == ""


def test_a_stack_of_another_length_than_the_first_layer_says_how_to_fit(tsn, tmp_path):
    torch.save(tsn[10], tmp_path / "flow.pth")
    weights = read_weights(str(tmp_path / "flow.pth"), "bninception")
    net = build_net("bninception", {"temporal": StackForm(10)}, {"main": 5})
    with pytest.raises(CheckpointError, match="3 or 20 channels, got 10: give --L 5, or"):
        load_weights(net, weights, {})


def test_color_filters_of_i3d_serve_flow_averaged(i3d, tmp_path):
    torch.save(i3d[3], tmp_path / "rgb.pt")
    flow: Inputs = {"temporal": StackForm(9)}
    net = build_net("i3d", flow, {"main": 5})
    weights = read_weights(str(tmp_path / "rgb.pt"), "i3d")
    theirs = i3d[3]["Conv3d_1a_7x7.conv3d.weight"]
    load_weights(net, weights, {})
    found = net.trunk.Conv3d_1a_7x7.conv3d.weight
    assert torch.equal(found, theirs.mean(1, keepdim=True).expand(-1, 2, -1, -1, -1))
    load_weights(net, weights, {}, first_layer="shared")
    assert torch.equal(net.trunk.Conv3d_1a_7x7.conv3d.weight, theirs[:, :2])


@pytest.mark.parametrize(("net", "length"), [("bninception", 5), ("i3d", 9)])
def test_the_last_layer_alone_is_trained_on_published_weights(net, length, tsn, i3d, tmp_path):
    records = write_videos(tmp_path / "flow", per_class=2)
    torch.save(tsn[10] if net == "bninception" else i3d[2], tmp_path / "a.pt")
    inputs: Inputs = {"temporal": StackForm(length, mean_subtract=False)}
    recipe = {"steps": 1, "batch_size": 2, "drop_at": (), "mode": "last-layer"}
    options = {"net": net, "inputs": inputs, "weights": str(tmp_path / "a.pt"), "recipe": recipe}
    job = make_job(records, make_split(2), **options)
    before = job.build().state_dict()
    for _ in train(job, tmp_path / "run", ALONE, Machine()):
        pass
    after = load_net(tmp_path / "run")[1].state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {"heads.main.weight", "heads.main.bias"}


def test_i3d_is_no_tower():
    with pytest.raises(UsageError, match=r"i3d cannot be cut into a tower: .*, bninception, "):
        tower_seams("i3d+i3d", "relu5")


def test_i3d_keeps_batch_statistics_where_nothing_learns():
    with torch.device("meta"):
        net = build_net("i3d", {"spatial": FrameForm(9)}, {"main": 5})
    net.train_top(0)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm3d)]
    assert len(norms) == 57
    assert not any(norm.training for norm in norms)
    net.train_top(None)
    assert all(norm.training for norm in norms)


def test_passes_of_i3d_count_every_frame(i3d, tmp_path):
    """Fifty views of 64 frames at once would take tens of gigabytes."""
    adopted(tmp_path, i3d[3], "i3d", length=25)
    frames = np.stack(moving_texture(30, size=(40, 48)))
    record = write_record(tmp_path, "a", np.zeros((29, 40, 48, 2), np.float32), frames=frames)
    scorer = Scorer(tmp_path / "run", views=TestViews(1, "ten"))
    sizes = []

    def answer(stacks):
        sizes.append(len(stacks))
        return torch.zeros(len(stacks), len(NAMES))

    scorer.net.forward = answer
    [(_, logits)] = scorer.logits(record)
    assert logits.shape == (10, len(NAMES))
    assert sizes == [2] * 5


def test_flow_and_views_of_adopted_streams_are_those_of_their_papers(tsn, tmp_path):
    checkpoint, _ = adopted(tmp_path, tsn[10], "bninception")
    assert default_views(checkpoint) == TestViews()
    assert default_views(replace(checkpoint, net="i3d")) == TestViews(4, "center", "logits")
    request = video_request([checkpoint])
    assert (request.method.name, request.resize, request.storage.bound) == ("tvl1", "256", 20)
    told = {
        "method": {"name": "dis"},
        "resize": None,
        "bound": None,
        "format": "jpg",
        "quality": 80,
    }
    for both in ([checkpoint, replace(checkpoint, flow=told)], [replace(checkpoint, flow=told)]):
        request = video_request(both)
        assert (request.method.name, request.storage.quality) == ("dis", 80)


def test_the_command_makes_a_run_that_features_take(tsn, tmp_path):
    torch.save({"state_dict": tsn[10]}, tmp_path / "flow.pth")
    (tmp_path / "classes.txt").write_text("".join(f"{k + 1} {n}\n" for k, n in enumerate(NAMES)))
    line = ("adopt", "flow.pth", "--net", "bninception", "--classes", "classes.txt")
    done = run_here(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"runs/temporal: bninception, 5 classes, sees L = 5" in done.stdout
    checkpoint = read_checkpoint(tmp_path / "runs/temporal")
    assert checkpoint.tasks == {"main": tuple(NAMES)}
    assert checkpoint.trained_on.unknown == ("flow.pth",)
    again = run_here(*line[:1], "runs/temporal", *line[2:], cwd=tmp_path)
    assert again.returncode == 2
    assert b"best.json: is a run of flowkit's already" in again.stderr
    again = run_here(*line, cwd=tmp_path)
    assert again.returncode == 2
    assert b"runs/temporal: holds files already" in again.stderr
    views = ("--moments", "1", "--views", "center")
    write_record(tmp_path / "flow", "a", np.zeros((6, 64, 80, 2), np.float32))
    done = run_here("features", "runs/temporal", "--out", "f", *views, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "f/a.npz")["features"].shape == (1, 1024)


@pytest.mark.slow
def test_raw_videos_are_predicted_by_an_adopted_run(tsn, tmp_path):
    adopted(tmp_path, tsn[10], "bninception")
    write_video(tmp_path / "a.avi", moving_texture(8, size=(64, 80)))
    views = ("--moments", "1", "--views", "center")
    done = run_here("predict", "a.avi", "--temporal", "run", *views, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"a.avi: class " in done.stdout


def test_a_training_does_not_write_over_an_adopted_run(tsn, tmp_path):
    adopted(tmp_path, tsn[10], "bninception")
    job = make_job(write_videos(tmp_path / "flow", per_class=2), make_split(2))
    for start in ("new", "resume"):
        with pytest.raises(UsageError, match="run: holds weights that were trained elsewhere"):
            next(train(job, tmp_path / "run", ALONE, Machine(), start=start))
    assert load_net(tmp_path / "run")


def test_an_exported_i3d_says_how_it_is_scored(i3d, tmp_path):
    checkpoint, _ = adopted(tmp_path, i3d[2], "i3d")
    told = _describe_scoring(checkpoint)
    assert (told["moments"], told["average"]) == (4, "logits, over moments")
    assert told["views"] == "the crop in the center (rounded down)"
