"""`flowkit fuse`: the scores of several streams to one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowkit.documents import differences
from flowkit.errors import UsageError
from flowkit.scores.fusion import FUSIONS
from flowkit_cli import output
from flowkit_cli.options import (
    choices_text,
    json_option,
    renamed_option,
    scored_runs_option,
)

if TYPE_CHECKING:
    from flowkit.scores.files import Scores
    from flowkit.scores.fusion import Fusion, On


@click.command()
@click.argument("scores", metavar="[SCORES]...", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(tuple(FUSIONS)),
    default="average",
    show_default=True,
    help=f"{choices_text(FUSIONS)} svm, logistic, class-weighted, and weighted without --shares "
    "are fitted on held-out videos.",
)
@click.option(
    "--on",
    type=click.Choice(["softmax", "logits"]),
    help="What average and weighted combine: probabilities, or their logarithms, as TSN does with "
    "--shares spatial=1,temporal=1.5.  [default: softmax]",
)
@click.option(
    "--shares",
    metavar="NAME=W,...",
    help="How much each stream counts with --method weighted: spatial=1,temporal=1.5.  "
    "[default: learned]",
)
@renamed_option("--weights", "--shares")
@click.option(
    "--fit-on",
    multiple=True,
    metavar="SCORES",
    type=click.Path(path_type=Path),
    help="Scores file or run folder with the videos to fit on; once for each stream.  "
    "[default: scores-heldout.npz beside each scores-test.npz]",
)
@click.option(
    "--svm",
    type=click.Choice(["crammer-singer", "ovr"]),
    help="Which multi-class linear SVM; ovr is one class against the rest.  "
    "[default: crammer-singer]",
)
@click.option(
    "--C",
    "c",
    type=click.FloatRange(0, min_open=True),
    help="The SVM's and logistic's C.  [default: by cross-validation over source groups]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of folds and solver.")
@scored_runs_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to.  [default: RUNS/fused/scores-test.npz]",
)
@click.option(
    "--fitted",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep the fusion, for flowkit predict.  [default: fusion.npz beside --out]",
)
@json_option
def fuse(
    scores: tuple[Path, ...],
    method: str,
    runs: Path,
    out: Path | None,
    fitted: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Fuse the scores of several streams, joined by video and class name.

    SCORES are scores files, run folders or folders of runs, of one split; by default all runs.
    Fusions in a folder of runs are passed over. Files made elsewhere go by their names: idt.npz is
    the stream idt.

    \b
    flowkit fuse --method svm            -> runs/fused/scores-test.npz, and the table
    flowkit fuse runs/spatial runs/temporal idt.npz --out runs/three/scores-test.npz
    """
    from flowkit.report.figures import evaluate
    from flowkit.report.text import as_json as report_json
    from flowkit.report.text import methods_text
    from flowkit.scores import fusion as fusions
    from flowkit.scores.files import (
        find_scores,
        name_streams,
        read_scores,
        stream_name,
        write_scores,
    )

    _check_options(method, **options)
    files = name_streams(find_scores(scores or [runs]))
    streams = {name: read_scores(path) for name, path in files.items()}
    found = [name for name, path in files.items() if not {path, path.parent} & set(scores)]
    for name in found:  # in folders of runs, and not asked for by name
        if "fusion" in streams[name].meta:
            del streams[name]  # an earlier result
    _leave_towers_out(streams, files, found)
    _refuse_rivals({name: streams[name] for name in found if name in streams}, files)
    if len(streams) < 2:
        there = ", ".join(str(files[name]) for name in streams) or "none"
        raise UsageError(f"expected scores of two streams or more to fuse, got {there}")
    out = out or runs / "fused" / "scores-test.npz"
    fitted = fitted or out.with_name("fusion.npz")
    paths = [files[name] for name in streams]
    output.check_out("--out", out, "an .npz", paths)
    output.check_out("--fitted", fitted, "an .npz", [*paths, out])
    output.say(f"read {', '.join(map(str, paths))}")
    _say_other_views(streams)
    fusion = _make_fusion(method, streams, paths, **options)
    fused = fusions.fuse(streams, fusion)
    write_scores(out, fused)
    fusions.write_fusion(fitted, fusion)
    place = {"out": str(out), "fitted": str(fitted), **fused.meta["fusion"]}
    if (fused.labels >= 0).any():
        name = stream_name(out) if stream_name(out) not in streams else str(out)
        report = evaluate({**streams, name: fused}, method=name)
        if as_json:
            figures = report_json([report])["splits"][0]
            place |= {key: figures[key] for key in ("split", "videos", "methods", "comparisons")}
        else:
            output.result_lines(methods_text(report))
    if as_json:
        output.json_line(place)
    output.say(f"wrote {out}, {fitted}")


def _leave_towers_out(
    streams: dict[str, Scores], files: Mapping[str, Path], found: Sequence[str]
) -> None:
    """Drop joined towers that nobody named: they grew from the two streams beside them."""
    for name in [one for one in found if one in streams]:
        if streams[name].meta.get("stream") == "towers" and len(streams) > 1:
            output.say(f"{files[name]}: left out, as it holds both streams: name it to fuse it")
            del streams[name]


def _refuse_rivals(streams: Mapping[str, Scores], files: Mapping[str, Path]) -> None:
    """UsageError where two runs of one stream were found, none of them asked for by name."""
    alike: dict[object, list[str]] = {}
    for name, found in streams.items():
        alike.setdefault(found.meta.get("stream", name), []).append(name)
    for stream, names in alike.items():
        if len(names) > 1:
            raise UsageError(
                f"{files[names[0]].parent.parent}: holds {len(names)} runs of the {stream} stream, "
                f"{', '.join(names)}: name those to fuse, such as flowkit fuse "
                + " ".join(str(files[one[0]].parent) for one in alike.values())
            )


def _say_other_views(streams: Mapping[str, Scores]) -> None:
    """Say which streams were scored at other views than the first: allowed, and easily missed."""
    views = {name: one.meta["views"] for name, one in streams.items() if one.meta.get("views")}
    first, *others = views or [""]
    for name in others:
        texts = "; ".join(differences(views[first], views[name]))
        if texts:
            texts = texts.replace("on disk", f"in {first}").replace("asked for", f"in {name}")
            output.say(f"{first} and {name} are scored at other views ({texts})")


def _refuse_other_nets(
    rows: Mapping[str, Scores], streams: Mapping[str, Scores], files: Mapping[str, Path]
) -> None:
    """UsageError where scores to fit on are of another network or other views than those fused."""
    for name, fitted in rows.items():
        own = streams[name].meta
        for key in ("checkpoint", "views"):
            one, other = fitted.meta.get(key), own.get(key)
            if one and other and one != other:
                texts = "; ".join(differences(one, other)).replace("on disk", "there")
                found = texts.replace("asked for", f"in the {own.get('part', 'fused')} scores")
                what = "another checkpoint" if key == "checkpoint" else "other views"
                raise UsageError(
                    f"{files[name]}: is of {what} than the scores that are fused ({found}): "
                    "score both parts alike (flowkit eval)"
                )
        if "views" in fitted.meta and not fitted.meta.get("unseen"):
            output.say(
                f"{files[name]}: does not say what its network was trained on; where that is "
                "among these videos, the fusion trusts it too much"
            )


def _check_options(method: str, **options: Any) -> None:
    """UsageError for an option that the method does not use, which would change nothing."""
    needs = FUSIONS[method].needs
    goes_with = {
        "on": options["on"] in FUSIONS[method].on,
        "shares": needs == "weights",
        "fit_on": needs != "nothing",
        "svm": method == "svm",
        "c": FUSIONS[method].is_linear,
    }
    for name, used in goes_with.items():
        if options[name] and not used:
            flag = "--C" if name == "c" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag} does not go with --method {method}")
    if options["shares"] and options["fit_on"]:
        raise UsageError("--shares are given, so there is nothing to fit: leave --fit-on out")


def _make_fusion(
    method: str,
    streams: Mapping[str, Scores],
    paths: list[Path],
    *,
    on: On | None,
    shares: str | None,
    fit_on: tuple[Path, ...],
    svm: str | None,
    c: float | None,
    seed: int,
) -> Fusion:
    """The fusion that the options ask for, fitted where they ask for that."""
    from flowkit.scores.files import find_scores, heldout_path, name_streams, read_scores
    from flowkit.scores.fitting import fit_class_weights, fit_linear, fit_weights
    from flowkit.scores.fusion import Fusion, describe

    on = on or FUSIONS[method].on[0]
    if shares is not None:
        return Fusion(method, _parse_shares(shares), on=on)
    if FUSIONS[method].needs == "nothing":
        return Fusion(method, on=on)
    files = find_scores(fit_on, "heldout") if fit_on else [heldout_path(path) for path in paths]
    for path in files:
        if not path.is_file():
            raise UsageError(
                f"{path}: no such scores to fit {method} on: flowkit eval writes them, "
                "and --fit-on names others"
            )
    named = name_streams(files)
    rows = {name: read_scores(path) for name, path in named.items()}
    if set(rows) != set(streams):
        raise UsageError(
            f"expected scores of the streams {', '.join(sorted(streams))} to fit on, "
            f"got {', '.join(sorted(rows))}"
        )
    _refuse_other_nets(rows, streams, named)
    test_videos = next(iter(streams.values())).videos
    if method == "weighted":
        fusion = fit_weights(rows, test_videos=test_videos, on=on)
    elif method == "class-weighted":
        fusion = fit_class_weights(rows, test_videos=test_videos)
    else:
        svm = svm or "crammer-singer"
        fusion = fit_linear(method, rows, svm=svm, C=c, seed=seed, test_videos=test_videos)
    accuracies = fusion.fit.get("cross_validation")
    told = f", accuracy by C in cross-validation: {json.dumps(accuracies)}" if accuracies else ""
    output.say(
        f"fitted on {output.count(fusion.fit['rows'], 'video')} of {', '.join(map(str, files))}: "
        f"{describe(fusion, streams)}{told}"
    )
    return fusion


def _parse_shares(text: str) -> dict[str, float]:
    shares = {}
    for item in text.split(","):
        name, _, weight = item.rpartition("=")
        try:
            shares[name.strip()] = float(weight)
        except ValueError:
            name = ""
        if not name:
            raise UsageError(f"expected --shares such as spatial=1,temporal=1.5, got {text!r}")
    return shares
