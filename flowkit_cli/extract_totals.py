"""What a run of `flowkit extract` adds up to, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowkit_cli.video_runs import Totals

if TYPE_CHECKING:
    from flowkit.extraction.extract import Extracted
    from flowkit.extraction.flow_processes import FlowProcesses
    from flowkit.extraction.messages import Usage
    from flowkit.extraction.outcomes import Outcome
    from flowkit.extraction.throughput import Throughput


class ExtractTotals(Totals):
    """Those of `flowkit extract`: also the time of all workers by stage, and the GPUs' part."""

    def __init__(self, *, skipped: int, todo: int, workers: int, begun: float) -> None:
        super().__init__("field", skipped=skipped, todo=todo, workers=workers)
        self.seconds: dict[str, float] = {}  # seconds of all workers, by stage
        self.creating_s = 0.0
        self.plain_fields: int | None = None  # of flow that is stabilized
        self.begun = begun  # time.monotonic() of the command's begin
        self.usages: dict[int, Usage] | None = None
        self.notes: list[str] = []

    def add(self, outcome: Outcome[Extracted]) -> None:
        """One more video is done or has failed."""
        super().add(outcome)
        if outcome.result is not None:
            self.creating_s += outcome.result.creating_s
            if outcome.result.plain_fields is not None:
                self.plain_fields = (self.plain_fields or 0) + outcome.result.plain_fields
            for stage, seconds in outcome.result.seconds.items():
                self.seconds[stage] = self.seconds.get(stage, 0) + seconds

    def hear(self, processes: FlowProcesses) -> None:
        """What the flow processes, which still live, have to tell at the end."""
        self.usages = processes.usages()
        self.notes = processes.notes()
        self.stopped_by = processes.problem or self.stopped_by

    def summary(self) -> str:
        """The last lines: counts, speed, where the time went, what failed, the bottleneck."""
        text = super().summary()
        if self.done:
            busy = sum(self.seconds.values())
            shares = ", ".join(
                f"{stage} {100 * self.seconds[stage] / busy:.0f}%"
                for stage in ("decode", "flow", "encode", "write")
            )
            text += f" ({shares})"
        lines = [text, *self.notes]
        if self.plain_fields is not None:
            lines.append(
                f"the camera's motion was not found for {self.plain_fields:,} of {self.made:,} "
                "fields: these are plain flow"
            )
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
        event = super().event()
        if self.plain_fields is not None:
            event["plain_fields"] = self.plain_fields
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

    def _throughput(self) -> Throughput | None:
        if not self.done:
            return None
        from flowkit.extraction.throughput import find_bottleneck

        return find_bottleneck(
            self.frames,
            self.seconds,
            self.workers,
            self.usages,
            creating_s=self.creating_s,
            start_s=self.start - self.begun,
            work_s=self.elapsed,
        )
