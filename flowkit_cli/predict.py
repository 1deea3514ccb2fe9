"""`flowkit predict`: raw videos to their most likely classes."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.data.frames import FRAME_INPUTS
from flowkit.errors import UsageError
from flowkit.stores.urls import Url, absolute, as_place
from flowkit_cli import output
from flowkit_cli.options import (
    MethodName,
    cores,
    json_option,
    max_frame_option,
    parameter_option,
    read_own_parameters,
    workers_option,
)
from flowkit_cli.scoring_options import own_nets, scoring_options, test_views
from flowkit_cli.store_options import PlacePath, store_access, store_options
from flowkit_cli.timeline import check_live, check_timeline, tell_live, tell_timeline

if TYPE_CHECKING:
    from flowkit.evaluation.held_records import Held, HeldRecord, Looks
    from flowkit.evaluation.held_windows import Spans
    from flowkit.evaluation.prediction import Prediction, Predictor
    from flowkit.networks.checkpoints import Checkpoint
    from flowkit.scores.fusion import Fusion

log = logging.getLogger("flowkit")


def _parameter(name: str) -> str:
    """The parameter that an option of a stream's name is given as."""
    return name.replace("-", "_")


def _frame_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for a stream of each of FRAME_INPUTS."""
    for name in reversed(FRAME_INPUTS):
        command = click.option(
            f"--{name}",
            _parameter(name),
            type=click.Path(path_type=Path),
            metavar="RUN",
            help=f"Run or checkpoint of a stream of {name} (flowkit train spatial --input {name} "
            "--stack N).  [default: likewise]",
        )(command)
    return command


@click.command()
@click.argument("videos", metavar="VIDEO...", nargs=-1, type=PlacePath())
@click.option(
    "--spatial",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run or checkpoint of the spatial stream.  [default: RUNS/spatial, if it is there and "
    "no stream is named]",
)
@_frame_options
@click.option(
    "--temporal",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run or checkpoint of the temporal stream.  [default: likewise]",
)
@click.option(
    "--towers",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Run or checkpoint of joined towers, instead of the two streams.",
)
@click.option(
    "--fusion",
    metavar="FILE|average",
    help="What flowkit fuse kept.  [default: RUNS/fused/fusion.npz, if it is there, else average]",
)
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Folder of the runs.",
)
@click.option(
    "--top", type=click.IntRange(1), default=5, show_default=True, help="Classes of a video."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Of one VIDEO, write an .mp4 of its frames and flow with the prediction below.",
)
@click.option(
    "--timeline",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Of one VIDEO of any length, write the probabilities of all classes in each window, as "
    ".csv or .jsonl, and tell the segments of one most likely class.",
)
@click.option(
    "--window",
    "window_s",
    type=click.FloatRange(0, min_open=True),
    default=4.0,
    show_default=True,
    metavar="S",
    help="With --timeline, the length of a window.",
)
@click.option(
    "--stride",
    "stride_s",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="With --timeline, how far apart windows begin.  [default: half a window]",
)
@click.option(
    "--live",
    metavar="URL",
    help="Instead of a VIDEO a live stream, by rtsp, rtmp, http or udp: each window as a line of "
    "JSON as it comes, or as rows of --timeline.",
)
@click.option(
    "--stall",
    "stall_s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="S",
    help="With --live, how long nothing may come.",
)
@click.option(
    "--method",
    type=MethodName(own_only=True),
    help="Of a stream that was trained on flow of your own code: that code, which runs only where "
    "it is named.",
)
@parameter_option
@scoring_options
@max_frame_option
@workers_option
@json_option
@store_options
def predict(
    videos: tuple[str | Url, ...],
    spatial: Path | None,
    temporal: Path | None,
    towers: Path | None,
    fusion: str | None,
    runs: Path,
    top: int,
    out: Path | None,
    timeline: Path | None,
    window_s: float,
    stride_s: float | None,
    live: str | None,
    stall_s: float,
    method: str | None,
    own_parameters: tuple[str, ...],
    workers: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The most likely classes of VIDEO, with their probabilities.

    VIDEO is a file, a folder of frames or of videos, a list file, or - for paths on standard input,
    each answered as it comes; or it is a video or a folder of them in a store. Flow is computed as
    that of the records that the stream was trained on, in worker processes; answers come as they
    are found. A video that fails, or that makes its worker crash, does not stop the rest. Of
    standard input one path is taken at a time, with -j as many as there are workers.

    With --timeline one VIDEO is read once, in bounded memory, however long it is: each window is
    predicted as a video of its length would be. So is the stream of --live, from now on until it
    ends, nothing comes for --stall seconds (status 1), or Ctrl-C; what was seen stays written.

    \b
    flowkit predict a.mp4
    find videos -name '*.avi' | flowkit predict - --json
    flowkit predict a.mp4 --temporal runs/temporal --out overlay.mp4
    flowkit predict long.mp4 --timeline long.csv --window 4 --out film.mp4
    flowkit predict --live rtsp://camera.local/stream --window 2 >seen.jsonl

    Exit status: 0 all done, 1 some videos failed, 2 usage.
    """
    from flowkit.evaluation.held_records import hold_videos
    from flowkit.flow.methods import make_method

    if live is not None:
        check_live(live, videos, timeline, out)
    asked = _find(videos) if live is not None else _check_videos(videos, out, timeline)
    stacks = {name: options.pop(_parameter(name)) for name in FRAME_INPUTS}
    asked_for = {"spatial": spatial, **stacks, "temporal": temporal, "towers": towers}
    found = _find_streams(asked_for, runs)
    chosen = _read_fusion(fusion, runs, found)
    options["nets"] = own_nets(options.pop("own_nets"), dict(found.values()))
    options["own"] = None
    if method is not None:
        options["own"] = make_method(method, **read_own_parameters(method, own_parameters))
    make_predictor = partial(_make_predictor, found, chosen, options)
    if live is not None:
        spans = _spans(window_s, stride_s)
        tell_live(make_predictor(), live, spans, timeline, stall_s, as_json=as_json)
    elif timeline is not None:
        [(path, problem)] = asked
        if problem:
            raise UsageError(problem)
        if isinstance(path, Url):
            raise UsageError(f"--timeline: expected a video of this machine, got {path}")
        spans = _spans(window_s, stride_s)
        tell_timeline(make_predictor(), path, spans, timeline, out, top, as_json=as_json)
    else:
        looks = _looks([one for _, one in found.values()], options, whole=out is not None)
        known = None if "-" in videos else list(asked)
        if _takes_one_worker(looks) or (workers is None and known is None):
            workers = 1
        held = hold_videos(looks, known or asked, workers=workers or cores())
        count = None if known is None else len(known)
        if _tell_videos(held, count, make_predictor, top, out, as_json=as_json):
            sys.exit(1)


def _check_videos(
    videos: tuple[str | Url, ...], out: Path | None, timeline: Path | None
) -> Iterator[tuple[str | Url, str]]:
    """What `_find` gives; UsageError where a video is not there, or where there must be one."""
    if not videos:
        raise click.UsageError("Missing argument 'VIDEO...', or --live URL.")
    here = [name for name in videos if isinstance(name, str) and name != "-"]
    if absent := [name for name in here if not os.path.lexists(name)]:
        raise UsageError(f"{absent[0]}: no such file or folder")
    if out is None and timeline is None:
        return _find(videos)
    named = list(_find(videos))
    if len(named) != 1:
        option = "--out" if timeline is None else "--timeline"
        raise UsageError(f"{option} shows one video, got {len(named)}")
    inputs = [str(path) for path in (*videos, named[0][0])]
    if out is not None:
        output.check_out("--out", out, "a .mp4", inputs)
    if timeline is not None:
        check_timeline(timeline, inputs)
    return iter(named)


def _spans(window_s: float, stride_s: float | None) -> Spans:
    from flowkit.evaluation.held_windows import Spans

    return Spans(window_s, window_s / 2 if stride_s is None else stride_s)


def _looks(checkpoints: Collection[Checkpoint], options: dict[str, Any], *, whole: bool) -> Looks:
    """What the streams look at in a video."""
    from flowkit.evaluation.held_records import looks_of

    asked_at = [(one, test_views(options, one).moments) for one in checkpoints]
    limit, own = options["max_frame_mpx"], options["own"]
    return looks_of(asked_at, max_frame_mpx=limit, whole=whole, own=own)


def _takes_one_worker(looks: Looks) -> bool:
    """Whether the flow is computed by what one process alone should use."""
    from flowkit.flow.methods import METHODS, MethodFacts

    facts = METHODS.get(looks.request.method.name, MethodFacts("one's own"))
    return facts.one_worker or facts.runs_on == "cuda"


def _tell_videos(
    held: Generator[Held],
    count: int | None,
    make_predictor: Callable[[], Predictor],
    top: int,
    out: Path | None,
    *,
    as_json: bool,
) -> int:
    """Tell what each of `count` videos shows, as its record comes; how many failed."""
    predictor, failed = None, 0
    with closing(held) as events, output.ProgressBar(count) as progress:
        for event in events:
            predictor = predictor or make_predictor()  # while the workers work
            if event.record is not None:
                progress.frames_of(event.path, event.record.frame_count)
                reason = _answer(predictor, event.path, event.record, top, out, as_json=as_json)
            elif not (reason := event.reason):
                continue
            progress.finished(failed=bool(reason))
            if reason:
                failed += 1
                output.error(f"failed: {event.path}: {reason}")
                if as_json:
                    line = {"video": event.path, "status": "failed", "reason": reason}
                    output.json_line(line)
    if out is not None and not failed:
        output.say(f"wrote {out}")
    return failed


def _find_streams(
    asked: Mapping[str, Path | None], runs: Path
) -> dict[str, tuple[Path, Checkpoint]]:
    """By the name of its run's folder, each stream that is named, else each of `runs`.

    `asked` are the runs by what they should hold. Joined towers are taken where they are named.
    """
    from flowkit.networks.checkpoints import BEST, checkpoint_path, read_checkpoint

    names = {path: name for name, path in asked.items() if path is not None}
    named = list(names)
    given = named or [
        runs / name for name in asked if name != "towers" and (runs / name / BEST).exists()
    ]
    if not given:
        raise UsageError(
            f"{runs}: holds no trained stream: flowkit train makes them, and --spatial and "
            "--temporal name others"
        )
    found = {}
    for path in given:
        checkpoint = read_checkpoint(path)
        held = checkpoint.stream
        expected = names.get(path, held)
        if held != expected:
            raise UsageError(f"--{expected} {path}: holds a {held} stream")
        found[checkpoint_path(path).absolute().parent.name] = path, checkpoint
    if len(found) < len(given):
        raise UsageError(f"{' and '.join(map(str, given))}: give the runs' folders different names")
    return found


def _make_predictor(
    found: dict[str, tuple[Path, Checkpoint]], fusion: Fusion | None, options: dict[str, Any]
) -> Predictor:
    """The streams' networks, loaded, and their fusion."""
    from flowkit.evaluation.prediction import Predictor
    from flowkit.evaluation.scoring import Scorer
    from flowkit.scores.fusion import describe
    from flowkit.training.distributed import choose_device

    device, size = choose_device(options["device"]), options["pass_inputs"]
    scorers = {
        name: Scorer(
            path,
            views=test_views(options, one),
            device=device,
            pass_inputs=size,
            own=options["nets"][path],
        )
        for name, (path, one) in found.items()
    }
    limit, own = options["max_frame_mpx"], options["own"]
    predictor = Predictor(scorers, fusion, max_frame_mpx=limit, own=own)
    how = "" if fusion is None else f"; {describe(fusion, scorers)}"
    if fusion is not None and fusion.method == "svm":
        how += ", its percentages the softmax of margins"
    output.say(f"read {', '.join(str(scorer.path) for scorer in scorers.values())}{how}")
    return predictor


def _answer(
    predictor: Predictor,
    path: str,
    record: HeldRecord,
    top: int,
    out: Path | None,
    *,
    as_json: bool,
) -> str:
    """Tell what a video shows; why that was not possible, or ""."""
    try:
        found = predictor.predict_record(record)
        if out is not None:
            from flowkit.pictures.overlay import write_overlay

            write_overlay(record, found.top(top), out)
    except Exception as error:  # one bad video never stops the rest
        log.debug("%s", path, exc_info=True)
        return f"{error or type(error).__name__}".removeprefix(f"{path}: ")
    _tell(path, found, top, as_json=as_json)
    return ""


def _read_fusion(given: str | None, runs: Path, streams: Collection[str]) -> Fusion | None:
    """The fusion that is asked for; None for one stream alone."""
    from flowkit.scores.fusion import Fusion, read_fusion

    if len(streams) == 1:
        if given is not None:
            raise UsageError("--fusion goes with two streams: name both, --spatial and --temporal")
        return None
    kept = runs / "fused" / "fusion.npz"
    if given == "average" or (given is None and not kept.exists()):
        return Fusion("average")
    return read_fusion(given or kept)


def _find(videos: tuple[str | Url, ...]) -> Iterator[tuple[str | Url, str]]:
    """The path of every video, and what is wrong with it; lines of standard input as they come."""
    from flowkit.records.copies import scratch_folder
    from flowkit.records.unfinished import remove_dead
    from flowkit.stores.objects import close_stores
    from flowkit.video.sources import find_videos

    access = store_access(click.get_current_context())
    remove_dead(scratch_folder(access))

    def names() -> Iterator[str | Url]:
        for name in videos:
            if name != "-":
                yield name
                continue
            for line in output.stdin():
                if text := os.fsdecode(line).rstrip("\r\n"):
                    yield text

    for name in names():
        try:
            sources = find_videos([name], access=access).sources
        except UsageError as error:
            yield name, str(error)
            continue
        close_stores()  # workers that are forked begin at once
        if len(sources) == 1 and str(sources[0].path) == absolute(as_place(name)):
            yield (sources[0].path if isinstance(sources[0].path, Url) else name), ""
            continue
        for source in sources:
            yield (source.path if isinstance(source.path, Url) else str(source.path)), ""


def _tell(path: str, found: Prediction, top: int, *, as_json: bool) -> None:
    if as_json:
        output.json_line(
            {
                "video": path,
                "status": "done",
                "frames": found.frames,
                "top": [{"class": name, "probability": p} for name, p in found.top(top)],
                "streams": {
                    name: {"class": class_name, "probability": p}
                    for name, (class_name, p) in found.streams.items()
                },
            }
        )
        return
    classes = ", ".join(f"{name} {p:.1%}" for name, p in found.top(top))
    output.result(f"{path}: {classes}")
