"""Flow processes as the run that starts them sees them: one per GPU, and what became of each."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from flowkit.errors import FlowkitError, UsageError
from flowkit.extraction.flow_client import RemoteFlow
from flowkit.extraction.messages import Halved, Usage, Work
from flowkit.flow.cuda.device import count_gpus
from flowkit.flow.method import FlowMethod
from flowkit.records.layout import Storage
from flowkit.workers.children import (
    Process,
    dump_for_child,
    end_child,
    how_it_died,
    refuse_script_import,
    start_child,
)
from flowkit.workers.engine import Done, Failed
from flowkit.workers.pool import run_pool
from flowkit.workers.signals import signals_held

log = logging.getLogger("flowkit")

LOAD_S = 300.0  # a GPU is open within this, its kernels compiled
WAIT_S = 0.5  # longest wait: a signal that comes just before it does not end it
USAGE_S = 5.0  # longest time in which a process says what it did
STARTS = 2  # starts of a process on each GPU: one that dies again would go on doing so


@dataclass(eq=False)
class _Seat:
    """A GPU, and the process that computes on it at the moment."""

    gpu: int
    running: set[int] = field(default_factory=set)  # videos, by their number
    starts: int = 0
    address: str = ""
    death: str = ""  # how the latest process died
    last_words: str = ""
    shortage: str = ""
    usage: Usage | None = None
    process: Process | None = None
    control: Connection | None = None

    def hear(self, message: Usage | Halved | str) -> None:
        """Keep what the process says; a first shortage of memory is logged, too."""
        match message:
            case Usage():
                self.usage = message
            case str():
                self.last_words = message
            case Halved(pairs, (height, width)):
                shortage = (
                    f"GPU {self.gpu} ran out of memory: batches were halved, "
                    f"to {pairs} pairs of {width}x{height}"
                )
                if not self.shortage:
                    log.warning("%s", shortage)
                self.shortage = shortage


class FlowProcesses:
    """One process for each GPU that computes `method` for all workers; a context manager.

    `storage` says whether flow is quantized there already, unless `quantized` is False. `gpus` are
    numbers among those that this process may use (``CUDA_VISIBLE_DEVICES``); a method of the CPU
    may be computed so, too.
    Entering starts the processes and waits for them: UsageError says why one cannot compute. They
    end with the block, and with the thread that entered it. Between `start` and `wait`, which it
    calls, there may be other work; `close` is its end.
    """

    def __init__(
        self, method: FlowMethod, storage: Storage, *, gpus: Sequence[int], quantized: bool = True
    ) -> None:
        if not gpus or len(set(gpus)) < len(gpus):
            raise UsageError(f"expected distinct GPUs such as 0,1, got {list(gpus)}")
        refuse_script_import()
        self.quantized = quantized and storage.is_planes and hasattr(method, "planes")
        self.work = Work(method, self.quantized, storage.bound)
        self.seats = [_Seat(gpu) for gpu in gpus]
        self.environments = {gpu: _environment(gpu) for gpu in gpus}
        self.problem = ""  # why no further video can be begun
        self._seat_of: dict[int, tuple[_Seat, str]] = {}  # video -> its seat and address there

    def start(self) -> None:
        """Start the processes that have not been started; they are not waited for."""
        for seat in self.seats:
            if seat.process is None:
                self._start(seat)

    def wait(self) -> None:
        """Wait until all of them can compute; UsageError says why one cannot."""
        for seat in self.seats:
            problem = self._wait_for(seat)
            if problem:
                raise UsageError(f"GPU {seat.gpu}: {problem}")

    def __enter__(self) -> FlowProcesses:
        try:
            self.start()
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def assign(self, video: int) -> RemoteFlow:
        """Where video number `video` is computed: on the GPU with the fewest videos.

        Where `problem` says so after the call, no flow will come from there.
        """
        seat = min(self.seats, key=lambda one: len(one.running))
        if seat.process is not None and seat.process.poll() is not None and not self.problem:
            self._replace(seat)
        seat.running.add(video)
        self._seat_of[video] = seat, seat.address
        return RemoteFlow(seat.address, self.quantized)

    def release(self, video: int) -> None:
        """Video number `video` is done or has failed."""
        self._seat_of.pop(video)[0].running.discard(video)

    def mourn(self, video: int) -> str:
        """How the process died that computed a video; another is started, but only once."""
        seat, address = self._seat_of[video]
        if address == seat.address and not self.problem:
            self._replace(seat)
        return seat.death

    def listen(self) -> None:
        """Log what the processes have to say; to be called now and then."""
        for seat in self.seats:
            self._listen(seat)

    def usages(self) -> dict[int, Usage]:
        """What the process of each GPU did; a GPU is missing whose process is dead."""
        for seat in self.seats:
            if seat.control is not None:
                with suppress(OSError):
                    seat.control.send("usage")
        deadline = time.monotonic() + USAGE_S
        for seat in self.seats:
            seat.usage = None
            while seat.usage is None and seat.control is not None:
                if not seat.control.poll(max(0, deadline - time.monotonic())):
                    break
                if not self._listen(seat):
                    break
        return {seat.gpu: seat.usage for seat in self.seats if seat.usage is not None}

    def notes(self) -> list[str]:
        """What happened to the processes, in words, for the end of a run."""
        return [note for seat in self.seats for note in (seat.death, seat.shortage) if note]

    def _listen(self, seat: _Seat) -> bool:
        """Take what a process has said; False if it is dead."""
        if seat.control is None:
            return False
        try:
            while seat.control.poll():
                seat.hear(seat.control.recv())
        except (EOFError, OSError):
            return False
        return True

    def _start(self, seat: _Seat) -> None:
        seat.address = f"flowkit-{os.getpid()}-{secrets.token_hex(16)}"
        seat.starts += 1
        seat.last_words = ""
        with signals_held():  # the child begins with them held, and ours wait until it is listed
            seat.process, seat.control = start_child(
                "flowkit.extraction.flow_server:serve", self.environments[seat.gpu]
            )
        with suppress(OSError):  # a dead process: `_wait_for` will tell
            seat.control.send_bytes(dump_for_child((seat.address, self.work)))

    def _wait_for(self, seat: _Seat) -> str:
        """Wait until the process listens; what stands in the way."""
        assert seat.process is not None and seat.control is not None
        deadline = time.monotonic() + LOAD_S
        while not seat.control.poll(WAIT_S):
            if time.monotonic() > deadline:
                return f"its flow process was not ready after {LOAD_S:g} s"
        try:
            return seat.control.recv()
        except (EOFError, OSError):
            return f"its flow process {how_it_died(seat.process)} while it started"

    def _replace(self, seat: _Seat) -> None:
        """Bury a process that died, and start another unless that died before, too."""
        assert seat.process is not None and seat.control is not None
        self._listen(seat)
        seat.death = f"the flow process of GPU {seat.gpu} {how_it_died(seat.process)}" + (
            f": {seat.last_words}" if seat.last_words else ""
        )
        self._end_seat(seat)
        if seat.starts == STARTS:
            self.problem = f"{seat.death}, for the second time"
            return
        log.warning("%s: starting it again", seat.death)
        self._start(seat)
        problem = self._wait_for(seat)
        if problem:
            self.problem = f"{seat.death}, and cannot be started again: {problem}"

    def _end_seat(self, seat: _Seat) -> None:
        if seat.process is not None and seat.control is not None:
            end_child(seat.process)
            seat.control.close()
            seat.control = None

    def close(self) -> None:
        """End the processes."""
        with signals_held():
            for seat in self.seats:
                if seat.process is not None:
                    seat.process.kill()  # all of them before the first wait
            for seat in self.seats:
                self._end_seat(seat)


def count_gpus_apart() -> int:
    """`count_gpus`, asked in another process: one that has asked cannot be forked any more."""
    with closing(run_pool(_count_gpus, [None], workers=1)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                raise FlowkitError(outcome.reason)
            if isinstance(outcome, Done):
                return outcome.result
    raise AssertionError("an item has an outcome")


def _count_gpus(item: None, report: Callable[[Any], None]) -> int:
    return count_gpus()


def _environment(gpu: int) -> dict[str, str]:
    """What shows a process one GPU only; UsageError if this process may not use it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in visible.split(",")] if visible is not None else None
    if names is None:
        return {"CUDA_VISIBLE_DEVICES": str(gpu)}
    if gpu >= len(names):
        raise UsageError(
            f"expected GPUs of 0 to {len(names) - 1}, as CUDA_VISIBLE_DEVICES is {visible!r}, "
            f"got {gpu}"
        )
    return {"CUDA_VISIBLE_DEVICES": names[gpu]}
