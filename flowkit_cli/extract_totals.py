"""What a run of `flowkit extract` adds up to, for people and as JSON."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flowkit_cli import output

if TYPE_CHECKING:
    from flowkit.extraction.extract import Outcome
    from flowkit.extraction.flow_processes import FlowProcesses
    from flowkit.extraction.messages import Usage
    from flowkit.extraction.throughput import Throughput


class Totals:
    """Counts, times and failures of a run over `todo` videos, `skipped` further were there."""

    def __init__(self, skipped: int, todo: int, workers: int) -> None:
        self.skipped, self.todo, self.workers = skipped, todo, workers
        self.done = self.frames = self.fields = 0
        self.failed: list[Outcome] = []
        self.seconds: dict[str, float] = {}  # of all workers, by stage
        self.usages: dict[int, Usage] | None = None
        self.notes: list[str] = []
        self.stopped_by = "the disk is full"
        self.start, self.elapsed = time.monotonic(), 0.0

    def begin(self) -> None:
        """The work starts now."""
        self.start = time.monotonic()

    def add(self, outcome: Outcome) -> None:
        """One more video is done or has failed."""
        if outcome.extracted is None:
            self.failed.append(outcome)
            return
        self.done += 1
        self.frames += outcome.extracted.frames
        self.fields += outcome.extracted.fields
        for stage, seconds in outcome.extracted.seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0) + seconds

    def end(self, processes: FlowProcesses | None) -> None:
        """The work ends now; the flow processes, if there are any, still live."""
        self.elapsed = time.monotonic() - self.start
        if processes is not None:
            self.usages = processes.usages()
            self.notes = processes.notes()
            self.stopped_by = processes.problem or self.stopped_by

    def summary(self) -> str:
        """The last lines: counts, speed, where the time went, what failed, the bottleneck."""
        text = f"{self.done:,} done, {self.skipped:,} there already, {len(self.failed):,} failed"
        if self._not_begun:
            text += f", {self._not_begun:,} not begun ({self.stopped_by})"
        if self.done:
            busy = sum(self.seconds.values())
            shares = ", ".join(
                f"{stage} {100 * self.seconds[stage] / busy:.0f}%"
                for stage in ("decode", "flow", "encode", "write")
            )
            text += (
                f"; {output.count(self.frames, 'frame')}, {output.count(self.fields, 'field')} in "
                f"{output.duration(self.elapsed)}: {self.frames / self.elapsed:.1f} frames/s with "
                f"{output.count(self.workers, 'worker')} ({shares})"
            )
        lines = [text, *self.notes]
        throughput = self._throughput()
        if throughput is not None:
            rates = ", ".join(f"{stage} {rate:,.0f}" for stage, rate in throughput.rates.items())
            gpu = "" if throughput.busy is None else f", the GPU busy {throughput.busy:.0%}"
            lines.append(
                f"bottleneck: {throughput.bottleneck} (alone, frames/s: {rates}{gpu}); "
                f"quicker with {throughput.advice}"
            )
        return "\n".join(lines)

    def event(self) -> dict[str, Any]:
        """The last line of --json."""
        event: dict[str, Any] = {
            "status": "summary",
            "done": self.done,
            "skipped": self.skipped,
            "failed": len(self.failed),
            "not_begun": self._not_begun,
            "frames": self.frames,
            "fields": self.fields,
            "seconds": round(self.elapsed, 3),
            "frames_per_s": round(self.frames / self.elapsed, 1),
            "workers": self.workers,
        }
        throughput = self._throughput()
        if throughput is not None:
            event |= {
                "stages": {stage: round(rate, 1) for stage, rate in throughput.rates.items()},
                "bottleneck": throughput.bottleneck,
                "advice": throughput.advice,
            }
        if self.usages is not None:
            event["gpus"] = [
                {
                    "gpu": gpu,
                    "pairs": usage.pairs,
                    "batches": usage.batches,
                    "busy": round(usage.busy_s / max(usage.span_s, 1e-9), 3),
                }
                for gpu, usage in self.usages.items()
            ]
            event["notes"] = self.notes
        return event

    @property
    def _not_begun(self) -> int:
        return self.todo - self.done - len(self.failed)

    def _throughput(self) -> Throughput | None:
        if not self.done:
            return None
        from flowkit.extraction.throughput import find_bottleneck

        return find_bottleneck(self.frames, self.seconds, self.workers, self.usages)
