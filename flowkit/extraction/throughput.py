"""What each stage of an extraction could do, which one held it up, and what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flowkit.extraction.messages import Usage

STAGES = ("decode", "flow", "encode", "write")
BUSY = 0.85  # share of the time from which on a GPU is what the others wait for
WAITING = 0.5  # share of the workers' time
STARTING = 0.5  # share of the command's time from which on it is what the rest is small beside
CREATING = 0.5  # share of the time of writing
START, FILES = "start of the command", "file creation"
LOCK = "interpreter lock of the flow process"
WIDER = (START, FILES, LOCK)  # what may be the bottleneck beside the stages

ADVICE = {
    "decode": "more cores (-j), or videos of fewer pixels",
    "encode": "more cores (-j), or --no-rgb",
    "write": "a faster disk for --out, or --no-rgb",
    START: "more videos in one command",
    FILES: "--pack (one file per video), a local disk for --out, or --no-rgb",
    LOCK: "a further GPU (--gpus 0,1), which has a flow process of its own, or a smaller --resize",
}
CPU_ADVICE = "more cores (-j), a quicker --method or --preset, or an NVIDIA GPU (--gpu)"
GPU_ADVICE = "a further GPU (--gpus), a quicker --preset, or a smaller --resize"
IDLE_ADVICE = "more workers (-j), so that more pairs are at hand"


@dataclass(frozen=True)
class Throughput:
    """The frames/s that each stage could do alone, the `bottleneck` among them, and what helps.

    A stage of the workers could do what it did if they spent all their time on it, a GPU what it
    did while it had work; `busy` is the share of the time in which it had, None without GPUs. The
    bottleneck may be none of the stages but START, FILES (of "write") or LOCK: launches and
    messages of a flow process are Python's, on one core.
    """

    rates: dict[str, float]
    bottleneck: str
    advice: str
    busy: float | None = None


def find_bottleneck(
    frames: int,
    seconds: Mapping[str, float],
    workers: int,
    usages: Mapping[int, Usage] | None = None,
    *,
    creating_s: float = 0.0,
    start_s: float = 0.0,
    work_s: float = math.inf,
) -> Throughput:
    """The throughput of a run that made `frames` frames.

    `seconds` are those of all workers by stage; "flow" is their waiting where GPUs computed, which
    say what they did in `usages`. `creating_s` of those of "write" went into new files' names. The
    command took `start_s` before the first video, and `work_s` after that.
    """
    rates = {stage: frames * workers / max(seconds[stage], 1e-9) for stage in STAGES}
    used = [one for one in (usages or {}).values() if one.pairs]
    found = _slowest(frames, seconds, rates, used)
    if start_s >= STARTING * (start_s + work_s):
        return replace(found, bottleneck=START, advice=ADVICE[START])
    if found.bottleneck == "write" and creating_s >= CREATING * seconds["write"]:
        return replace(found, bottleneck=FILES, advice=ADVICE[FILES])
    return found


def _slowest(
    frames: int, seconds: Mapping[str, float], rates: dict[str, float], used: Sequence[Usage]
) -> Throughput:
    if not used:
        slowest = min(STAGES, key=rates.__getitem__)
        return Throughput(rates, slowest, {"flow": CPU_ADVICE, **ADVICE}[slowest])
    pairs = sum(one.pairs for one in used)
    rates["flow"] = frames / pairs * sum(one.pairs / max(one.busy_s, 1e-9) for one in used)
    busy = sum(one.busy_s for one in used) / max(sum(one.span_s for one in used), 1e-9)
    if max(one.processor_s / max(one.span_s, 1e-9) for one in used) >= BUSY:
        return Throughput(rates, LOCK, ADVICE[LOCK], busy)
    if busy >= BUSY:
        return Throughput(rates, "flow", GPU_ADVICE, busy)
    if seconds["flow"] >= WAITING * sum(seconds.values()):
        return Throughput(rates, "flow", IDLE_ADVICE, busy)
    slowest = min((one for one in STAGES if one != "flow"), key=rates.__getitem__)
    return Throughput(rates, slowest, ADVICE[slowest], busy)
