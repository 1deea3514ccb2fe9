"""The exit status of every command: 0 all done, 1 damaged or failed, 2 nothing of that name."""

import os
import shlex
import shutil

import pytest
import torch
from command import run_here
from made_published import tsn_shapes
from made_runs import write_run
from made_tracks import write_clips
from made_training import make_split, write_videos

from flowkit.data.splits import write_split
from flowkit.data.stacks import StackForm
from flowkit.records.reading import flow_of, open_record
from flowkit_cli.main import cli
from flowkit_cli.reference import walk

SPLIT = make_split(heldout=1, test=1)
EXTRACT = "extract --method dis --out made -j 1"
TRACK = "trajectories --matches none --out made -j 1"
TRAIN = "--net small --short-side 36 --crop 32 --recipe short --steps 1 --batch-size 2 -j 0"
JOIN = "train towers --join sum --steps 1 --batch-size 2 -j 0 --out made"
SCORE = "--moments 1 --views center"
PREDICT = f"predict --spatial runs/spatial -j 1 {SCORE}"
FEATURES = f"features runs/temporal --layer trunk.pool {SCORE} --out made"
GROUPS = ("split", "train", "fisher")
PATHLESS = ("doctor", "completion")  # need no path that is there

# What is damaged lies in damaged/, and half/ is half of it; made/ is written
DONE = """
{EXTRACT} videos
plan videos --method dis
{TRACK} videos
info flow
stats flow
verify flow runs
view flow/grow/v0 --out made.png
view tracks/left/v_left_g01_c01.npz --video videos/left/v_left_g01_c01.avi --out made.mp4
pack flow
unpack packs
convert flow --format lz4 --inexact --out made
split make flow --by-video --folds 2 --heldout-folds 0 --out made.json
split check runs/split.json --records flow
split export runs/split.json --for tsn --records flow --out made
stack flow/grow/v0 --L 2 --out made.npy
train spatial {TRAIN} --out made
train temporal --L 2 {TRAIN} --out made
{JOIN}
train svm --split tracks.json --out made
adopt published.pth --net bninception --classes classes.txt --out made
eval {SCORE}
fuse --method average
report
{FEATURES}
{PREDICT} videos
export runs/temporal --out made.onnx
fisher fit --split tracks.json --gaussians 2 --out made.npz
fisher encode --codebook fisher/codebook.npz --out made -j 1
fisher score --svm idt/svm.npz
""".format(**globals())

ABSENT = """
train svm --features hmax --split runs/split.json --records nowhere --vectors made
{EXTRACT} nowhere.mp4
{EXTRACT} videos nowhere
{EXTRACT} videos --root nowhere
{EXTRACT} nowhere.txt
extract videos --method raft --raft-weights nowhere.pth
{TRACK} nowhere
{TRACK} videos --root nowhere
{TRACK} videos --boxes nowhere
doctor --raft-weights nowhere.pth
plan nowhere.mp4
plan videos nowhere
plan nowhere.txt
info nowhere
info flow nowhere
info nowhere.zip
stats nowhere
stats nowhere.zip
verify nowhere
verify flow nowhere.json
verify nowhere.npz
verify nowhere.zip
view nowhere --out made.png
view nowhere.zip --out made.png
view nowhere.npz --video videos/left/v_left_g01_c01.avi --out made.mp4
view tracks/left/v_left_g01_c01.npz --video nowhere.avi --out made.mp4
pack nowhere
unpack nowhere
convert nowhere --format lz4 --out made
split make nowhere --out made.json
split make nowhere --kind ucf101 --out made.json
split make nowhere --kind hmdb51 --out made.json
split make nowhere.txt --kind list --test nowhere.txt --out made.json
split check nowhere.json
split check runs/split.json --records nowhere
split export nowhere.json --for tsn --records flow --out made
split export runs/split.json --for tsn --records nowhere --out made
stack nowhere --L 2 --out made.npy
stack nowhere.zip --L 2 --out made.npy
stack nowhere --layout tsn --bound 20 --L 2 --out made.npy
stack nowhere --layout denseflow --bound 20 --L 2 --out made.npy
train spatial {TRAIN} --records nowhere --out made
train spatial {TRAIN} --images nowhere --out made
train spatial {TRAIN} --split nowhere.json --out made
train spatial {TRAIN} --weights nowhere.pth --out made
train spatial {TRAIN} --weights nowhere/best.json --out made
train temporal --L 2 {TRAIN} --records nowhere --out made
train temporal --L 2 {TRAIN} --records nowhere --split runs/split.json --out made
train temporal --L 2 {TRAIN} --records nowhere --layout tsn --bound 20 --out made
train temporal --L 2 {TRAIN} --task a=nowhere --task b=flow --out made
train temporal --L 2 {TRAIN} --task a=flow,nowhere.json --task b=flow --out made
train temporal --L 2 {TRAIN} --add-classes nowhere --out made
train temporal --L 2 {TRAIN} --add-classes flow,nowhere.json --out made
train temporal --L 2 {TRAIN} --add-classes flow,runs/split.json,nowhere.txt --out made
{JOIN} --runs nowhere
{JOIN} --spatial nowhere
{JOIN} --temporal nowhere/best.json
{JOIN} --records nowhere
{JOIN} --split nowhere.json
train svm --vectors nowhere --split tracks.json --out made
train svm --split nowhere.json --out made
train svm --codebook nowhere.npz --split tracks.json --out made
adopt nowhere.pth --net i3d --classes classes.txt --out made
adopt published.pth --net bninception --classes nowhere.txt --out made
eval nowhere
eval runs/spatial nowhere
eval nowhere/best.json
eval --runs nowhere
eval --records nowhere
eval --split nowhere.json
fuse nowhere
fuse runs/spatial nowhere.npz
fuse --runs nowhere
fuse --method svm --fit-on nowhere
fuse --method svm --fit-on nowhere.npz
report nowhere
report runs/spatial nowhere.npz
report --runs nowhere
report runs/spatial --records nowhere
features nowhere --layer trunk.pool --out made
{FEATURES} --records nowhere
{PREDICT} nowhere.mp4
{PREDICT} videos nowhere
{PREDICT} nowhere.txt
{PREDICT} videos --spatial nowhere
{PREDICT} videos --temporal nowhere/best.json
predict videos --runs nowhere
{PREDICT} videos --temporal own/temporal --fusion nowhere.npz
export nowhere --out made.onnx
export nowhere/best.json --out made.onnx
fisher fit nowhere --split tracks.json --out made.npz
fisher fit --split nowhere.json --out made.npz
fisher fit --runs nowhere --out made.npz
fisher encode nowhere --codebook fisher/codebook.npz --out made
fisher encode --codebook nowhere.npz --out made
fisher score nowhere --svm idt/svm.npz
fisher score --svm nowhere.npz
fisher score --svm idt/svm.npz --split nowhere.json
""".format(**globals())

DAMAGED = """
{EXTRACT} damaged/bad.mp4
{EXTRACT} half/videos
plan damaged/bad.mp4
{TRACK} damaged/bad.mp4
{TRACK} half/videos
info damaged/flow
info half/flow
stats damaged/flow
stats half/flow
verify damaged/flow
verify half/flow
verify damaged/split.json
verify flow damaged/scores.npz
view damaged/flow/grow/v0 --out made.png
view damaged/bad.npz --video videos/left/v_left_g01_c01.avi --out made.mp4
view tracks/left/v_left_g01_c01.npz --video damaged/bad.mp4 --out made.mp4
pack half/flow
unpack half/packs
convert half/flow --format lz4 --inexact --out made -j 1
split make flow --kind list --test damaged/split.json --out made.json
split check damaged/split.json
split check runs/split.json --records half/flow
split export damaged/split.json --for tsn --records flow --out made
split export runs/split.json --for tsn --records half/flow --out made
stack damaged/flow/grow/v0 --L 2 --out made.npy
train spatial {TRAIN} --records damaged/flow --out made
train spatial {TRAIN} --split damaged/split.json --out made
train spatial {TRAIN} --weights damaged/run --out made
train spatial {TRAIN} --weights damaged/bad.pth --out made
train temporal --L 2 {TRAIN} --records half/flow --split runs/split.json --out made
{JOIN} --spatial damaged/run
{JOIN} --records half/flow
train svm --vectors half/fisher --split tracks.json --codebook fisher/codebook.npz --out made
train svm --features hmax --split runs/split.json --records half/flow --vectors made --out made
train svm --codebook damaged/bad.npz --split tracks.json --out made
adopt damaged/bad.pth --net i3d --classes classes.txt --out made
eval damaged/run {SCORE}
eval {SCORE} --records half/flow
eval {SCORE} --split damaged/split.json
fuse runs/spatial damaged/scores.npz
fuse --method svm --fit-on damaged/scores.npz
report runs/spatial damaged/scores.npz
features damaged/run --layer trunk.pool --out made
{FEATURES} --records damaged/flow
{FEATURES} --records half/flow
{PREDICT} damaged/bad.mp4
{PREDICT} half/videos
{PREDICT} videos --spatial damaged/run
{PREDICT} videos --temporal own/temporal --fusion damaged/bad.npz
export damaged/run --out made.onnx
fisher fit half/tracks --split tracks.json --out made.npz
fisher encode half/tracks --codebook fisher/codebook.npz --out made -j 1
fisher encode --codebook damaged/bad.npz --out made -j 1
fisher score half/fisher --svm idt/svm.npz
fisher score --svm damaged/bad.npz
""".format(**globals())


def lines(text):
    return text.strip().splitlines()


def command_of(line):
    """The command of a line, with its sub-command."""
    words = line.split()
    return " ".join(words[: 2 if words[0] in GROUPS else 1])


def spoil(path):
    """Damage a file, or all in a folder, if it is a document, pack, video or file of weights."""
    ends = (".json", ".zip", ".npz", ".avi", ".pth", ".safetensors")
    for file in [path] if path.suffix else path.rglob("*"):
        if file.suffix in ends:
            file.write_bytes(b"damaged" + file.read_bytes()[7:-100])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder of all that commands read, and of the same damaged, or half of it."""
    root = tmp_path_factory.mktemp("statuses")

    def made(line):
        done = run_here(*shlex.split(line), cwd=root)
        assert done.returncode == 0, done.stderr

    write_clips(root / "videos", each=3, size=(48, 64))
    write_videos(root / "flow", format="jpg", bound=8.0)
    made(f"{EXTRACT} videos/left --root videos --out own")
    flow = flow_of(open_record(root / "own/left/v_left_g01_c01"))
    write_run(root / "runs/spatial", split=SPLIT, seed=1)
    write_run(root / "runs/temporal", split=SPLIT, form=StackForm(2))
    write_run(root / "own/temporal", form=StackForm(2), flow=flow)
    write_split(root / "runs/split.json", SPLIT)
    published = {name: torch.zeros(shape) for name, shape in tsn_shapes(3, 2).items()}
    torch.save(published, root / "published.pth")
    (root / "classes.txt").write_text("jump\nrun\n")
    shutil.copytree(root / "flow", root / "packs")
    made("pack packs")
    made(f"{TRACK} videos --out tracks")
    made("split make videos --folds 3 --heldout-folds 0 --out tracks.json")
    made("fisher fit --split tracks.json --gaussians 2")
    made("fisher encode -j 1")
    made("train svm --split tracks.json --out idt")
    made(f"eval {SCORE}")
    damaged = root / "damaged"
    shutil.copytree(root / "flow", damaged / "flow")
    shutil.copytree(root / "runs/spatial", damaged / "run")
    shutil.copy(root / "runs/spatial/scores-test.npz", damaged / "scores.npz")
    shutil.copy(root / "runs/split.json", damaged / "split.json")
    for name in ("bad.mp4", "bad.npz", "bad.pth", "bad.txt"):
        (damaged / name).write_bytes(b"damaged" * 100)
    spoil(damaged)
    for name in ("videos", "flow", "packs", "tracks", "fisher"):
        shutil.copytree(root / name, root / "half" / name)
        for file in sorted((root / "half" / name).rglob("*"))[::2]:
            spoil(file)
    return root


@pytest.fixture
def project(sound, tmp_path):
    """A copy to work in; by links, as flowkit replaces files and never writes into one."""
    return shutil.copytree(sound, tmp_path / "project", copy_function=os.link)


def told(line, cwd):
    """The exit status of a command line, and what it says on standard error."""
    done = run_here(*shlex.split(line), cwd=cwd)
    return done.returncode, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.parametrize("line", lines(DONE))
def test_what_is_all_done_ends_with_0(project, line):
    status, text = told(line, project)
    assert status == 0, text


@pytest.mark.parametrize("line", lines(ABSENT))
def test_what_is_not_there_ends_with_2_and_one_line_before_any_work(sound, line):
    status, text = told(f"-q {line}", sound)
    assert status == 2, text
    assert text.startswith("flowkit: error: ") and text.count("\n") == 1 and "nowhere" in text
    assert not list(sound.glob("made*"))


@pytest.mark.parametrize("line", lines(DAMAGED))
def test_what_is_damaged_ends_with_1_and_a_line(project, line):
    status, text = told(f"-q {line}", project)
    assert status == 1, text
    assert "Traceback" not in text and "internal error" not in text


@pytest.mark.parametrize("table", [DONE, ABSENT, DAMAGED])
def test_every_command_is_in_every_table(table):
    named = {command_of(line) for line in lines(table)}
    commands = {path.removeprefix("flowkit ") for path, *_ in walk(cli, "flowkit")}
    assert commands - named <= {"flowkit", *GROUPS, *PATHLESS}
