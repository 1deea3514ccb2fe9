"""RAFT against torchvision called by hand, its files of weights, and what is refused."""

import hashlib
import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from made_raft import save_raft
from made_videos import moving_texture, write_video
from torchvision.models import optical_flow
from torchvision.transforms._presets import OpticalFlow

from flowkit.errors import UsageError
from flowkit.extraction.extract import extract_video, video_fields
from flowkit.extraction.plan import plan
from flowkit.extraction.request import Request
from flowkit.flow import raft
from flowkit.flow.methods import (
    describe_method,
    device_of,
    make_method,
    method_of,
    prepare_method,
)
from flowkit.flow.pairs import to_gray
from flowkit.flow.raft import RAFT
from flowkit.records.layout import Storage
from flowkit.records.reading import open_record
from flowkit.video.reading import open_video
from flowkit.video.sources import Source


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("raft")
    return {
        "raft_small": save_raft(folder / "small.pth"),
        "raft_large": save_raft(folder / "large.safetensors", net="raft_large", seed=1),
    }


def frames(size, count=2, seed=0) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size), np.uint8))


def by_hand(net: str, weights: str, first, second, updates: int) -> np.ndarray:
    """torchvision's own preparation of RGB images and its own network: float32 (H, W, 2)."""
    network = getattr(optical_flow, net)().eval()
    network.load_state_dict(
        torch.load(weights) if weights.endswith("pth") else load_safetensors(weights)
    )
    rgb = [
        torch.from_numpy(np.stack([one] * 3 if one.ndim == 2 else np.moveaxis(one, 2, 0)[::-1]))[
            None
        ]
        for one in (first, second)
    ]
    with torch.inference_mode():
        return network(*OpticalFlow()(*rgb), updates)[-1][0].permute(1, 2, 0).numpy()


def load_safetensors(path):
    from safetensors.torch import load_file

    return load_file(path)


def test_a_caller_between_two_fields_can_still_learn(files):
    fields = RAFT(files["raft_small"], updates=1).fields([tuple(frames((128, 128)))] * 2)
    next(fields)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    fields.close()


@pytest.mark.parametrize("net", ["raft_small", "raft_large"])
def test_it_is_torchvisions_field(files, net):
    first, second = frames((128, 136))
    [field] = RAFT(files[net], updates=3).fields([(first, second)])
    expected = by_hand(net, files[net], first, second, 3)
    assert np.abs(expected).max() > 0.1
    assert np.abs(field - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("net", ["raft_small", pytest.param("raft_large", marks=pytest.mark.slow)])
def test_colors_are_seen_as_torchvision_sees_them(files, net):
    first, second = frames((128, 136, 3))
    [field] = RAFT(files[net], updates=3)([first, second])
    expected = by_hand(net, files[net], first, second, 3)
    assert np.abs(field - expected).max() <= 1e-4 * np.abs(expected).max()


def test_without_color_frames_are_made_gray_as_for_every_other_method(files):
    color = frames((128, 136, 3))
    [field] = RAFT(files["raft_small"], updates=2, color=False)(color)
    [expected] = RAFT(files["raft_small"], updates=2)([to_gray(one) for one in color])
    assert (field == expected).all()


def test_gray_and_color_pairs_of_one_size_do_not_share_a_batch(files):
    gray, color = tuple(frames((128, 136))), tuple(frames((128, 136, 3)))
    method = RAFT(files["raft_small"], updates=1)
    together = list(method.fields([gray, color]))
    for pair, field in zip((gray, color), together, strict=True):
        assert (next(method.fields([pair])) == field).all()


def test_extraction_gives_it_the_videos_colors(files, tmp_path):
    path = write_video(
        tmp_path / "a.avi", moving_texture(3, size=(128, 128)), "ffv1", pixel_format="bgr0"
    )
    method = RAFT(files["raft_small"], updates=1)
    with open_video(path) as video:
        first, second, _ = video.frames()
    expected = by_hand("raft_small", files["raft_small"], first, second, 1)
    assert (
        np.abs(next(video_fields(path, method)) - expected).max() <= 1e-4 * np.abs(expected).max()
    )
    extract_video(Source(path, "a"), tmp_path / "flow", Request(method, storage=Storage("npy")))
    stored = open_record(tmp_path / "flow" / "a").fields(0, 1)[0]
    assert np.abs(stored - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_record_of_gray_frames_is_not_one_of_colors(files, tmp_path):
    """Its identity has no word of color; that of a request with `color` off is the very same."""
    gray, color = (describe_method(RAFT(files["raft_small"], color=one)) for one in (False, True))
    assert "color" not in gray
    assert color == {**gray, "color": True}
    for identity in (gray, color):
        method = method_of({**identity, "weights": files["raft_small"]})
        assert describe_method(method) == identity
    source = Source(write_video(tmp_path / "a.mp4", moving_texture(2)), "a")
    made = Request(RAFT(files["raft_small"], updates=1, color=False))
    extract_video(source, tmp_path / "flow", made)
    assert plan([source], tmp_path / "flow", made) == []
    with pytest.raises(UsageError, match="color"):
        plan([source], tmp_path / "flow", Request(RAFT(files["raft_small"], updates=1)))


def test_odd_sizes_are_padded_by_their_border_and_cropped(files):
    first, second = frames((131, 141))
    [field] = RAFT(files["raft_small"], updates=2).fields([(first, second)])
    padded = [np.pad(one, ((2, 3), (1, 2)), mode="edge") for one in (first, second)]
    expected = by_hand("raft_small", files["raft_small"], *padded, 2)[2:-3, 1:-2]
    assert field.shape == (131, 141, 2)
    assert np.abs(field - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("side", "padding"),
    [(128, (0, 0)), (129, (3, 4)), (340, (2, 2)), (16, (56, 56)), (256, (0, 0))],
)
def test_sides_become_multiples_of_8_of_at_least_128(side, padding):
    assert raft._padding(side) == padding


def test_pairs_are_batched_by_size_in_their_order(files, monkeypatch):
    pairs = [
        tuple(frames(size, seed=seed)) for seed, size in enumerate([(16, 20)] * 3 + [(20, 16)])
    ]
    method = RAFT(files["raft_small"], updates=1)
    alone = [next(iter(method.fields([pair]))) for pair in pairs]
    sizes = []
    compute = raft._compute
    monkeypatch.setattr(raft, "MOST_PAIRS", 2)
    monkeypatch.setattr(raft, "_compute", lambda n, b, u: sizes.append(len(b)) or compute(n, b, u))
    together = list(method.fields(pairs))
    assert sizes == [2, 1, 1]
    for one, other in zip(together, alone, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max()


def test_a_batch_of_large_frames_is_smaller():
    assert (raft._room((256, 340)), raft._room((1080, 1920))) == (8, 1)


def test_the_identity_is_the_files_name_and_content_wherever_it_lies(files, tmp_path):
    copy = tmp_path / "small.pth"
    copy.write_bytes(Path(files["raft_small"]).read_bytes())
    digest = hashlib.sha256(copy.read_bytes()).hexdigest()
    identity = describe_method(RAFT(str(copy)))
    assert identity == {
        "name": "raft",
        "weights": "small.pth",
        "updates": 12,
        "sha256": digest,
        "color": True,
    }
    assert describe_method(RAFT(files["raft_small"])) == identity
    assert pickle.loads(pickle.dumps(RAFT(str(copy)))) == RAFT(str(copy))


def test_the_device_is_told(files):
    assert device_of(RAFT(files["raft_small"])) == ("cuda" if torch.cuda.is_available() else "cpu")


def test_a_files_tensors_must_be_those_of_raft(tmp_path):
    wrong = tmp_path / "wrong.pth"
    torch.save({"fnet.conv1.weight": torch.zeros(3)}, wrong)
    with pytest.raises(UsageError) as caught:
        prepare_method(RAFT(str(wrong)))
    text = str(caught.value)
    assert text.startswith(f"raft: {wrong}: expected torchvision's raft_large or raft_small")
    assert re.search(
        r"for raft_large (\d+) of \1 tensors .*for raft_small (\d+) of \2 tensors are missing", text
    )
    assert text.count("and 1 unknown") == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no tensors", r"expected tensors, torchvision's raft_large"),
        (pickle.dumps(print, 2), r"expected tensors, torchvision's raft_large"),
    ],
)
@pytest.mark.parametrize("name", ["bad.pth", "bad.safetensors"])
def test_a_file_of_anything_else_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    method = RAFT(str(tmp_path / name))
    with pytest.raises((UsageError), match=message):
        list(method.fields([tuple(frames((16, 16)))]))


def test_a_list_of_tensors_is_refused(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(UsageError, match="expected tensors by name"):
        prepare_method(RAFT(str(tmp_path / "list.pth")))


def test_a_file_that_changes_after_the_start_is_refused(tmp_path):
    file = Path(save_raft(tmp_path / "a.pth", seed=3))
    method = RAFT(str(file))
    save_raft(file, seed=4)
    with pytest.raises(UsageError, match=r"a\.pth has changed meanwhile"):
        list(method.fields([tuple(frames((16, 16)))]))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "expected --raft-weights FILE"),
        ({"weights": "none.pth"}, r"cannot read the weights none.pth \(No such file"),
        ({"weights": __file__, "sha256": "00"}, "expected weights of SHA-256 00, got "),
        ({"weights": __file__, "updates": 0}, "expected updates of at least 1, got 0"),
    ],
)
def test_unfit_requests_are_refused(parameters, message):
    with pytest.raises(UsageError, match=message):
        make_method("raft", **parameters)


RUN = """
import sys
for name in sys.argv.pop(1).split():
    sys.modules[name] = None  # so that importing it fails
from flowkit_cli.main import main
main()
"""


def run(folder, blocked, *arguments):
    return subprocess.run(
        [sys.executable, "-c", RUN, blocked, "extract", "a.mp4", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_extract_by_raft_and_a_rerun_with_the_file_elsewhere(files, tmp_path):
    write_video(tmp_path / "a.mp4", moving_texture(3))
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "small.pth"
    moved.write_bytes(Path(files["raft_small"]).read_bytes())
    options = ("--method", "raft", "--raft-updates", "1", "--raft-weights")
    done = run(tmp_path, "", *options, files["raft_small"])
    assert done.returncode == 0, done.stderr
    assert "raft to flow/ with 1 worker" in done.stderr
    sidecar = json.loads((tmp_path / "flow" / "a" / "record.json").read_text())
    assert sidecar["device"] == device_of(RAFT(files["raft_small"]))
    assert sidecar["request"]["method"]["weights"] == "small.pth"
    request = Request(RAFT(str(moved), updates=1))
    assert plan([Source(tmp_path / "a.mp4", "a")], tmp_path / "flow", request) == []


@pytest.mark.slow
def test_without_torchvision_raft_says_so_and_other_methods_run(files, tmp_path):
    write_video(tmp_path / "a.mp4", moving_texture(3))
    done = run(tmp_path, "torchvision", "--method", "raft", "--raft-weights", files["raft_small"])
    assert done.returncode == 2
    assert "--method raft needs torchvision" in done.stderr
    done = run(
        tmp_path, "torchvision torch", "--method", "raft", "--raft-weights", files["raft_small"]
    )
    assert (done.returncode, "--method raft needs torch " in done.stderr) == (2, True)
    assert run(tmp_path, "torchvision torch", "--method", "dis").returncode == 0


def test_weights_go_with_raft_only(tmp_path):
    write_video(tmp_path / "a.mp4", moving_texture(3))
    done = run(tmp_path, "", "--method", "dis", "--raft-weights", "x.pth")
    assert done.returncode == 2
    assert "--raft-weights does not go with --method dis" in done.stderr
