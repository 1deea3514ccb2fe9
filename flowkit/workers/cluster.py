"""The engine of a Dask cluster: the pool's contract, on whatever machines its workers are."""

from __future__ import annotations

import logging
import secrets
import time
import warnings
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import flowkit
from flowkit.documents import listed, parse_json, read_plain_file
from flowkit.errors import FlowkitError, InstallError, UsageError
from flowkit.workers.children import one_line
from flowkit.workers.cluster_worker import TOPIC, ClusterRun, end_run, facts_of_process, run_item
from flowkit.workers.engine import Event, Failed, Progress, Task
from flowkit.workers.pool import WAIT_S, Job, make_limits, pickled_items, pickled_task
from flowkit.workers.signals import raise_if_stopped, signals_held

if TYPE_CHECKING:
    from distributed import Client, Future

log = logging.getLogger("flowkit")

CONNECT_S = 10.0  # the longest wait for the scheduler
LOOK_S = 2.0  # seconds between two looks at how many workers there are
END_S = 5.0  # workers are told of the end of a run within this, those that answer
AHEAD = 8  # items that wait at the scheduler beside one for each thread
NOBODY_S = 15.0  # that there is no worker is said after so long
SETTINGS = {
    "distributed.worker.profile.enabled": False,  # would look at every thread all 10 ms
    "distributed.admin.low-level-log-length": 50,  # of 1,000, which fill in the first 200 videos
    # Every process of Dask looks after itself by the clock: a tenth of a core for two workers
    "distributed.admin.tick.interval": "1s",  # of 20 ms
    "distributed.admin.system-monitor.interval": "5s",  # of 500 ms
    "distributed.scheduler.work-stealing-interval": "1s",  # of 100 ms
}


class Cluster:
    """A Dask cluster and this process as its client; `run` is an `Engine`."""

    def __init__(self, client: Client, name: str) -> None:
        self.name = name
        self.most_threads = 0  # that there were at a time
        self._client = client
        self._threads = 0
        self._looked = -LOOK_S
        self._seen = time.monotonic()  # when there was a worker last
        self._told = False

    def threads(self) -> int:
        """The threads of the workers that are there now, or were 2 s ago.

        FlowkitError where the scheduler does not answer.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            try:
                self._threads = sum(self._client.nthreads().values())
            except Exception as error:  # of several kinds, by how the connection was lost
                raise self._gone() from error
            self._looked = time.monotonic()
            self.most_threads = max(self.most_threads, self._threads)
            self._tell_of_nobody()
        return self._threads

    def _tell_of_nobody(self) -> None:
        if self._threads:
            self._seen, self._told = time.monotonic(), False
        elif not self._told and time.monotonic() - self._seen >= NOBODY_S:
            self._told = True
            log.warning("%s has no worker: waiting for one", self.name)

    def _gone(self) -> FlowkitError:
        return FlowkitError(
            f"the scheduler of {self.name} does not answer any more; what is done is kept: run the "
            "same command again when it is there"
        )

    def check_versions(self) -> None:
        """UsageError where the scheduler or a worker has another flowkit than this process.

        Other versions of what the machines speak to each other with are a warning.
        """
        found = {"the scheduler": self._client.run_on_scheduler(facts_of_process)}
        found |= self._client.run(facts_of_process, on_error="return")
        here = facts_of_process()
        for name in here:
            odd = {
                place: one_line(facts) if isinstance(facts, Exception) else facts[name]
                for place, facts in found.items()
                if isinstance(facts, Exception) or facts[name] != here[name]
            }
            if not odd:
                continue
            got = listed(f"{version} ({place})" for place, version in odd.items())
            text = f"{self.name}: expected {name} {here[name]} everywhere, as here, got {got}"
            if name == "flowkit":
                raise UsageError(f"{text}: install one version in the cluster's environment")
            log.warning("%s", text)

    def run(
        self,
        task: Task,
        items: Iterable[Any],
        *,
        workers: int,
        timeout_s: float | None = None,
        memory_bytes: int | None = None,
    ) -> Generator[Event]:
        """An `Engine`: call ``task(item, report)`` for every item in the cluster.

        As `run_pool`, whose errors it shares, with one item on each thread at a time. The scheduler
        has never more than `workers` items, nor more than two for each thread and a few. An item
        whose worker is lost is begun elsewhere, once; lost again, it has failed. Closing the
        iterator cancels what waits and stops what is under way. FlowkitError where the scheduler is
        lost, or a worker has another flowkit.
        """
        if workers < 1:
            raise UsageError(f"expected at least 1 worker, got {workers}")
        limits = make_limits(timeout_s, memory_bytes)
        run = ClusterRun(secrets.token_hex(8), flowkit.__version__, pickled_task(task), limits)
        return self._events(run, pickled_items(items), workers)

    def _events(self, run: ClusterRun, jobs: Iterator[Job], workers: int) -> Generator[Event]:
        heard: SimpleQueue[Progress | int] = SimpleQueue()  # the number of an item: it has ended
        held: dict[int, tuple[Future, int]] = {}  # item -> its future and slot
        free: list[int] = []  # slots that were used before
        more = True

        def hear(event: tuple[float, dict[str, Any]]) -> None:
            _, told = event
            if told["run"] == run.name:
                heard.put(Progress(told["of"], told["value"]))

        self._client.subscribe_topic(TOPIC, hear)
        try:
            while True:
                raise_if_stopped()
                while more and len(held) < min(workers, 2 * self.threads() + AHEAD):
                    job = next(jobs, None)
                    if job is None:
                        more = False
                        break
                    slot = free.pop() if free else len(held)
                    held[job[0]] = self._submit(run, job, slot), slot
                    held[job[0]][0].add_done_callback(lambda future, at=job[0]: heard.put(at))
                if not held:
                    return
                try:
                    event = heard.get(timeout=WAIT_S)
                except Empty:
                    self.threads()  # is there anybody?
                    continue
                if isinstance(event, Progress):
                    if event.index in held:
                        yield event
                    continue
                future, slot = held.pop(event)
                free.append(slot)
                yield self._outcome(event, future)
        finally:
            self._end(run, [future for future, _ in held.values()])

    def _submit(self, run: ClusterRun, job: Job, slot: int) -> Future:
        """One item handed to the scheduler."""
        key = (f"flowkit-{run.name}", job[0])  # a group of its own: it waits at the scheduler
        return self._client.submit(run_item, run, job, slot, key=key, pure=False)

    def _outcome(self, index: int, future: Future) -> Event:
        """What a future that has ended says of its item; an error of the run as a whole raises."""
        from distributed import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            worker = getattr(error.last_worker, "address", "")
            reason = f"poison: the scheduler gave it up with worker {worker}, the last of several"
            return Failed(index, reason, "crash", 0.0)
        except FlowkitError:
            raise
        except Exception as error:
            if future.status in ("cancelled", "lost"):
                raise self._gone() from error
            raise FlowkitError(f"{self.name} cannot do the work: {one_line(error)}") from error

    def _end(self, run: ClusterRun, futures: list[Future]) -> None:
        """Nothing of a run goes on, as far as its workers can be reached."""
        with suppress(Exception):  # there may be no scheduler any more
            self._client.unsubscribe_topic(TOPIC)
            self._client.cancel(futures)
            self._client.run(end_run, run.name, on_error="ignore", callback_timeout=END_S)
            self._client.set_metadata([f"flowkit-{run.name}"], None)


@contextmanager
def connected(address: str, *, workers: int) -> Iterator[Cluster]:
    """The cluster of a scheduler at `address`: "tcp://HOST:PORT", or the path of its file.

    "local" starts one of `workers` processes on this machine, which ends with the context.
    InstallError without Dask's distributed, UsageError where no scheduler answers, or where
    flowkit is another there.
    """
    try:
        import dask
        import distributed
    except ImportError as error:
        raise InstallError(
            f"--dask needs distributed ({error}): pip install 'flowkit-video[dask]'"
        ) from error
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(SETTINGS))
        stack.enter_context(_quiet())
        scheduler = _start_local(stack, workers) if address == "local" else _scheduler(address)
        try:
            client = stack.enter_context(
                distributed.Client(scheduler, timeout=CONNECT_S, set_as_default=False)
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"--dask {address}: no scheduler answers: {one_line(error)}"
            ) from error
        found = Cluster(client, f"--dask {address}")
        found.check_versions()
        yield found


def _start_local(stack: ExitStack, workers: int) -> str:
    """A scheduler in this process, and workers of one thread that no Ctrl-C reaches: its address.

    They end with the `stack`.
    """
    from distributed import LocalCluster

    resource_tracker.ensure_running()  # which would take the hold of signals off
    with signals_held():
        try:
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                memory_limit=0,  # it would watch the worker, but not its child
                dashboard_address=None,
                silence_logs=logging.CRITICAL,
            )
            return stack.enter_context(cluster).scheduler_address
        except (OSError, RuntimeError) as error:
            raise FlowkitError(f"--dask local: cannot be started: {one_line(error)}") from error


def _scheduler(address: str) -> str:
    """The address of the scheduler that is meant; UsageError where that is none."""
    if "://" in address:
        return address
    if not Path(address).is_file():
        raise UsageError(
            f"--dask {address}: expected an address such as tcp://HOST:8786, the file that "
            "dask scheduler --scheduler-file writes, or local"
        )
    what = "file of dask scheduler --scheduler-file"
    data = read_plain_file(address, error=UsageError)
    found = parse_json(data, where=f"--dask {address}", what=what, error=UsageError).get("address")
    if not isinstance(found, str):
        raise UsageError(f'--dask {address}: expected a {what}, with "address", got another')
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Dask's own log and warnings: what matters of it, flowkit says."""
    loggers = [logging.getLogger(name) for name in ("distributed", "asyncio", "tornado")]
    levels = [one.level for one in loggers]
    try:
        if not log.isEnabledFor(logging.DEBUG):
            for one in loggers:
                one.setLevel(logging.CRITICAL + 1)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)
