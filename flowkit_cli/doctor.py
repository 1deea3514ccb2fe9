"""`flowkit doctor`: what this machine can do, how fast, and what to fix."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flowkit.errors import UsageError
from flowkit_cli import output
from flowkit_cli.options import renamed_option

if TYPE_CHECKING:
    from flowkit.doctor import Facts, Hardware
    from flowkit.workers.machine import Disk

GIB = 1 << 30


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="flow",
    show_default=True,
    help="The folder that records would be written to.",
)
@click.option("--no-speed", is_flag=True, help="Do not measure the methods (some 15 seconds).")
@click.option("--raft-weights", metavar="FILE", help="Measure --method raft, too, with this file.")
@renamed_option("--weights", "--raft-weights")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def doctor(out: Path, no_speed: bool, raft_weights: str | None, as_json: bool) -> None:
    """What this machine can do, how fast, and what to fix.

    Cores, memory, disk, libraries, decoders and NVIDIA GPUs; then the pairs/s of the flow
    methods, measured on a made pair of 340x256 in one process, compilation not counted. Nothing is
    changed or downloaded.

    \b
    flowkit doctor
    flowkit doctor --json --no-speed | jq .problems

    Exit status: 0 if `flowkit extract` can run here, 1 if not.
    """
    from flowkit.doctor import examine

    if raft_weights is not None and not Path(raft_weights).exists():
        raise UsageError(f"--raft-weights {raft_weights}: no such file")
    with _Steps() as steps:
        facts = examine(out, speeds=not no_speed, weights=raft_weights, tell=steps.tell)
    if as_json:
        output.json_line({**dataclasses.asdict(facts), "can_extract": facts.can_extract})
    else:
        _show(facts)
    if not facts.can_extract:
        sys.exit(1)


class _Steps:
    """What is being looked at, on a terminal's last line, which is clean again at the end."""

    def __init__(self) -> None:
        self.shown = sys.stderr.isatty()

    def __enter__(self) -> _Steps:
        return self

    def __exit__(self, *exc: object) -> None:
        self._write("")

    def tell(self, step: str) -> None:
        self._write(f"{step} ...")

    def _write(self, text: str) -> None:
        if self.shown:
            click.echo(f"\r\033[K{text}", nl=False, err=True)


def _show(facts: Facts) -> None:
    output.result(f"flowkit {facts.flowkit}, Python {facts.python}, {facts.machine.system}")
    _section("Machine", [*_machine(facts.machine), ("disk", _disk(facts.disk))])
    _section("Libraries", _libraries(facts))
    _section("NVIDIA", _nvidia(facts))
    if facts.speeds:
        _section("Pairs/s at 340x256, one process", _speeds(facts))
    _heading("To fix" if facts.problems else "Nothing to fix")
    for problem in facts.problems:
        mark, style = ("stops extract", {"fg": "red"}) if problem.stops else ("note", {})
        output.result(f"  {mark}: {problem.what}", **style)
        output.result(f"      -> {problem.fix}")
    output.result("")
    output.result(_verdict(facts), bold=True, fg="green" if facts.can_extract else "red")


def _heading(title: str) -> None:
    output.result("")
    output.result(title, bold=True)


def _section(title: str, rows: list[tuple[str, str]]) -> None:
    _heading(title)
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        output.result(f"  {name:<{width}}  {text}")


def _machine(machine: Hardware) -> list[tuple[str, str]]:
    cores = f"{machine.usable_cores}"
    if machine.allowed_cores < machine.cores:
        cores += f"; this process may run on {machine.allowed_cores} of {machine.cores}"
    if machine.quota_cores is not None:
        cores += f"; its control group grants the time of {machine.quota_cores:g}"
    shared = "none" if machine.shared_bytes is None else f"{machine.shared_bytes / GIB:.1f} GiB"
    return [
        ("cores", cores),
        ("memory", f"{machine.memory_bytes / GIB:.1f} GiB, {machine.free_bytes / GIB:.1f} free"),
        ("/dev/shm", shared),
    ]


def _disk(disk: Disk) -> str:
    files = "" if disk.free_files is None else f", {disk.free_files:,} files"
    return f"{disk.free_bytes / GIB:.1f} GiB{files} free in {disk.path}"


def _libraries(facts: Facts) -> list[tuple[str, str]]:
    rows = []
    for one in facts.libraries:
        text = one.version or f"cannot be imported: {one.error}"
        if one.module == "cv2" and facts.opencv is not None:
            contrib = "with" if facts.opencv.tvl1 else "without"
            text += f", {contrib} contrib's TV-L1"
            flow = ", ".join(facts.opencv.cuda_flow)
            text += f", CUDA flow: {flow}" if flow else ", without CUDA flow"
        if one.module == "av" and facts.codecs:
            text += "; decodes " + ", ".join(name for name, there in facts.codecs.items() if there)
        if one.module == "torch" and one.version:
            text += f", CUDA {facts.cuda.torch}" if facts.cuda.torch else ", without CUDA"
        if one.module == "cuda.bindings.nvrtc" and facts.cuda.compiler:
            text += f", NVRTC {facts.cuda.compiler}"
        rows.append((one.module.partition(".")[0], text))
    return rows


def _nvidia(facts: Facts) -> list[tuple[str, str]]:
    return [
        ("driver", facts.cuda.driver or "none"),
        *((f"GPU {number}", text) for number, text in enumerate(facts.cuda.devices)),
        ("CUDA methods", f"no: {facts.cuda.problem}" if facts.cuda.problem else "can run"),
    ]


def _speeds(facts: Facts) -> list[tuple[str, str]]:
    return [
        (
            one.method,
            f"no: {one.error}"
            if one.pairs_per_s is None
            else f"{one.pairs_per_s:9,.1f}" + ("  (the default)" if one.method == "tvl1" else ""),
        )
        for one in facts.speeds
    ]


def _verdict(facts: Facts) -> str:
    if not facts.can_extract:
        return "flowkit extract cannot run here yet."
    workers = output.count(facts.machine.usable_cores, "worker")
    return f"flowkit extract can run here, with {workers}."
