"""An array and a Dask cluster on a real SLURM of one node, with tasks cancelled on the way.

usage: python benchmarks/slurm.py [array|srun|dask ...] [--frames 240] [--json FILE]

Starts munged, slurmctld and slurmd (Debian: slurm-wlm, munge) for this run alone, with their files
and ports of their own, and ends them; so far run as root. On videos that it makes:

* an array of eight tasks, `--shard slurm`; two of them are cancelled while they work; these two are
  submitted again with `--shard slurm/8`. Every record has the bytes that one run without SLURM
  gives, and what was finished before is not done again;
* `srun` with two tasks, `--shard slurm`: the same bytes;
* a scheduler and two workers of Dask as jobs of SLURM, started by dask-jobqueue (pip package) where
  it is installed: the same bytes with `--dask`.

Prints a JSON object; exit status 1 where one of these does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clips import run_benchmark
from cluster import contents, make_video

from flowkit.errors import FlowkitError

TASKS, VIDEOS = 8, 24
CANCELLED = (2, 5)
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "squeue", "srun", "sinfo")
WAIT_S = 600.0  # for all jobs of a step
MEMORY_MB = 8000  # that jobs may ask of the node
FLOWKIT = f"{sys.executable} -m flowkit_cli"

CONFIGURATION = """ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SchedulerType=sched/builtin
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    """All steps, into one object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    steps = {"array": array, "srun": srun, "dask": dask}
    parser.add_argument("steps", nargs="*", metavar="STEP")
    parser.add_argument("--frames", type=int, default=240, help="of each of the 24 videos")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if missing := [name for name in PROGRAMS if _which(name) is None]:
        raise FlowkitError(f"expected {', '.join(missing)}: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for number in range(VIDEOS):
            make_video(work / "videos" / f"{number}.avi", (72, 96), asked.frames + number)
        _run(f"{FLOWKIT} extract videos --out here", work)
        expected = contents(work / "here")
        with running_slurm(work / "slurm"):
            report = {"slurm": _run("sinfo --version", work).strip(), "videos": VIDEOS}
            for name in asked.steps or steps:
                report[name] = steps[name](work, expected)
                print(f"{name}: {json.dumps(report[name])}", file=sys.stderr)
    print(json.dumps(report, indent=2))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=2) + "\n", encoding="ascii")
    if not all(report[name].get("same_bytes", True) for name in asked.steps or steps):
        sys.exit(1)


def array(work: Path, expected: dict[str, bytes]) -> dict[str, Any]:
    """An array of eight, of which two tasks are cancelled at work and submitted again."""
    script = work / "array.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --cpus-per-task=1\n"
        f'exec {FLOWKIT} extract videos --out flow --shard "$1" -j 1 --json '
        "--failures failed-$SLURM_ARRAY_TASK_ID.tsv\n"
    )
    submit = "sbatch --parsable --output=%a-%A.out"
    job = _run(f"{submit} --array=1-{TASKS} {script} slurm", work).strip()
    for task in CANCELLED:
        _wait(lambda task=task: _has_begun(work, job, task), f"task {task} at work")
        _run(f"scancel {job}_{task}", work)
    _wait(lambda: not _run("squeue --noheader", work).strip(), "the array's end")
    first = _lines_of(work, job)
    kept = contents(work / "flow")
    numbers = ",".join(map(str, CANCELLED))
    again = _run(f"{submit} --array={numbers} {script} slurm/{TASKS}", work).strip()
    _wait(lambda: not _run("squeue --noheader", work).strip(), "the end of the tasks run again")
    second, found = _lines_of(work, again), contents(work / "flow")
    return {
        "tasks": TASKS,
        "cancelled": list(CANCELLED),
        "ended_by_themselves": first["summary"],
        "done_at_first": first["done"],
        "done_again_by_the_two": second["done"],
        "there_already_for_the_two": second["skipped"],
        "failed": first["failed"] + second["failed"],
        "kept_as_they_were": all(found.get(name) == data for name, data in kept.items()),
        "same_bytes": found == expected,
    }


def srun(work: Path, expected: dict[str, bytes]) -> dict[str, Any]:
    """Two tasks of one step, each with its share."""
    _run(f"srun -n 2 {FLOWKIT} extract videos --out by-srun --shard slurm -j 1", work)
    return {"tasks": 2, "same_bytes": contents(work / "by-srun") == expected}


def dask(work: Path, expected: dict[str, bytes]) -> dict[str, Any]:
    """A Dask cluster whose workers are jobs of SLURM, as docs/cluster.md has it."""
    try:
        from dask_jobqueue import SLURMCluster
    except ImportError:
        return {"not_run": "pip install dask-jobqueue"}
    options: dict[str, Any] = {
        "interface": "lo",
        "log_directory": str(work),
        "local_directory": str(work),
    }
    options["scheduler_options"] = {"dashboard_address": None}
    with SLURMCluster(cores=1, processes=1, memory="1GB", walltime="00:20:00", **options) as jobs:
        jobs.scale(jobs=2)
        jobs.wait_for_workers(2, timeout=WAIT_S)
        names = _run("squeue --noheader --format %j", work).split()
        address = jobs.scheduler_address
        _run(f"{FLOWKIT} extract videos --out by-dask --dask {address}", work)
    return {"jobs": names, "same_bytes": contents(work / "by-dask") == expected}


@contextmanager
def running_slurm(folder: Path) -> Iterator[None]:
    """A SLURM of this machine alone, whose commands find it by the environment."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(1024))
    settings = {
        "host": socket.gethostname().split(".")[0],
        "cores": os.cpu_count(),
        "memory": MEMORY_MB,
    }
    user = pwd.getpwuid(os.geteuid()).pw_name
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(folder=folder, user=user, ports=_ports(2), **settings))
    os.environ["SLURM_CONF"] = str(conf)
    munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "seed-file")]
    munge += [f"--log-file={folder}/munge.log", f"--key-file={key}", "--foreground", "--force"]
    programs = (["munged", *munge], ["slurmctld", "-D", "-c"], ["slurmd", "-D"])
    started = []
    try:
        for command in programs:
            log = (folder / f"{command[0]}.log").open("wb")
            path = str(_which(command[0]))
            started.append(
                subprocess.Popen([path, *command[1:]], stdout=log, stderr=log, cwd=folder)
            )
            time.sleep(1)
        _wait(lambda: "idle" in _run("sinfo --noheader --format %T", folder), "an idle node")
        try:
            yield
        finally:  # steps would outlive slurmd
            _run(f"scancel --user {user}", folder)
            _wait(lambda: not _run("squeue --noheader", folder).strip(), "the end of all jobs")
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def _ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _run(command: str, folder: Path) -> str:
    """What a command prints; FlowkitError where it fails."""
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise FlowkitError(f"{command}: status {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def _wait(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        if time.monotonic() > deadline:
            raise FlowkitError(f"waited {WAIT_S:.0f} s for {what}")
        time.sleep(0.1)


def _has_begun(work: Path, job: str, task: int) -> bool:
    """Whether a task of the array has finished a record and goes on."""
    output = work / f"{task}-{job}.out"
    return output.is_file() and '"done"' in output.read_text()


def _lines_of(work: Path, job: str) -> Counter[str]:
    """How many lines of --json the tasks of a job printed, by their status."""
    lines = (line for file in work.glob(f"*-{job}.out") for line in file.read_text().splitlines())
    return Counter(json.loads(line)["status"] for line in lines if line.startswith("{"))


if __name__ == "__main__":
    run_benchmark(main)
