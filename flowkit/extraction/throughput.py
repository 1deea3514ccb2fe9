"""What each stage of an extraction could do, which one held it up, and what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowkit.extraction.messages import Usage

STAGES = ("decode", "flow", "encode", "write")
BUSY = 0.85  # share of the time from which on a GPU is what the others wait for
WAITING = 0.5  # share of the workers' time

ADVICE = {
    "decode": "more cores (-j), or videos of fewer pixels",
    "encode": "more cores (-j), or --no-rgb",
    "write": "--pack (one file per video), a faster disk for --out, or --no-rgb",
}
CPU_ADVICE = "more cores (-j), a quicker --method or --preset, or an NVIDIA GPU (--gpu)"
GPU_ADVICE = "a further GPU (--gpus), a quicker --preset, or a smaller --resize"
IDLE_ADVICE = "more workers (-j), so that more pairs are at hand"


@dataclass(frozen=True)
class Throughput:
    """The frames/s that each stage could do alone, the `bottleneck` among them, and what helps.

    A stage of the workers could do what it did if they spent all their time on it, a GPU what it
    did while it had work; `busy` is the share of the time in which it had, None without GPUs.
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
) -> Throughput:
    """The throughput of a run that made `frames` frames.

    `seconds` are those of all workers by stage; "flow" is their waiting where GPUs computed, which
    say what they did in `usages`.
    """
    rates = {stage: frames * workers / max(seconds[stage], 1e-9) for stage in STAGES}
    used = [one for one in (usages or {}).values() if one.pairs]
    if not used:
        slowest = min(STAGES, key=rates.__getitem__)
        return Throughput(rates, slowest, {"flow": CPU_ADVICE, **ADVICE}[slowest])
    pairs = sum(one.pairs for one in used)
    rates["flow"] = frames / pairs * sum(one.pairs / max(one.busy_s, 1e-9) for one in used)
    busy = sum(one.busy_s for one in used) / max(sum(one.span_s for one in used), 1e-9)
    if busy >= BUSY:
        return Throughput(rates, "flow", GPU_ADVICE, busy)
    if seconds["flow"] >= WAITING * sum(seconds.values()):
        return Throughput(rates, "flow", IDLE_ADVICE, busy)
    slowest = min(ADVICE, key=rates.__getitem__)
    return Throughput(rates, slowest, ADVICE[slowest], busy)
