"""What this machine can do of flowkit's work: facts, speeds, and what to fix."""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import flowkit
from flowkit.flow.methods import make_method, methods_on
from flowkit.workers.machine import Disk, Hardware, examine_disk, examine_machine

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.method import FlowMethod

SIZE = (256, 340)  # (H, W) of the made pair: what two-stream networks are fed with
SHIFT = (2, 1)  # px down and right, from one made frame to the next
SECONDS = 0.6  # least time of a measurement
DRIVER = Path("/proc/driver/nvidia/version")
ROOM = 10 << 30  # bytes on the disk below which a note is due: some 100,000 frames with their flow
FILES = 1_000_000  # inodes below which a note is due: some 300,000 frames with their flow
SHARED = 1 << 30  # bytes of /dev/shm below which a note is due: a few batches of stacks
# Of data sets and of the web; FFmpeg's names.
CODECS = ("h264", "mpeg4", "msmpeg4v3", "mjpeg", "mpeg2video", "hevc", "vp8", "vp9", "av1", "wmv2")
NEEDED_CODECS = ("h264", "mpeg4", "mjpeg", "vp9", "hevc", "av1")


@dataclass(frozen=True)
class Needs:
    """A library as Python imports it, the package that brings it, and what does not go without."""

    module: str
    package: str
    used_by: str
    by_extract: bool = False


LIBRARIES = (
    Needs("numpy", "numpy", "everything", by_extract=True),
    Needs("cv2", "opencv-contrib-python", "flow and images", by_extract=True),
    Needs("av", "av", "reading videos", by_extract=True),
    Needs("numba", "numba", "--method tvl1 and farneback", by_extract=True),
    Needs("joblib", "joblib", "counting cores, fuse", by_extract=True),
    Needs("tqdm", "tqdm", "progress bars", by_extract=True),
    Needs("zlib_ng", "zlib-ng", "reading packs", by_extract=True),
    Needs("lz4.frame", "lz4", "--format lz4"),
    Needs("torch", "torch", "train, eval, predict, CUDA methods"),
    Needs("torchvision", "torchvision", "its networks in train and predict, --method raft"),
    Needs("cuda.bindings.nvrtc", "cuda-bindings", "--method tvl1-cuda and farneback-cuda"),
    Needs("safetensors", "safetensors", "train, eval, predict"),
    Needs("sklearn", "scikit-learn", "fuse --method svm or logistic"),
)


@dataclass(frozen=True)
class Library:
    """A library that flowkit uses: its version, or why it cannot be imported."""

    module: str
    version: str | None
    error: str


@dataclass(frozen=True)
class OpenCV:
    """What the build of OpenCV has beyond the main modules; `packages` are those that bring cv2."""

    tvl1: bool  # contrib's DualTVL1OpticalFlow
    cuda_flow: tuple[str, ...]  # flow classes of cv2.cuda
    cuda_devices: int  # number of devices that this build can use
    packages: tuple[str, ...]


@dataclass(frozen=True)
class Cuda:
    """The NVIDIA side: `problem` says why flowkit's kernels cannot run, "" where they can."""

    problem: str
    driver: str | None  # release of the kernel driver
    torch: str | None  # CUDA version that torch was built with
    compiler: str | None  # NVRTC's version
    devices: tuple[str, ...]  # "NVIDIA H200, compute capability 9.0, 139.8 GiB"


@dataclass(frozen=True)
class Speed:
    """Pairs/s of a method, with its defaults, in one process on the made pair, or why not."""

    method: str
    pairs_per_s: float | None
    error: str


@dataclass(frozen=True)
class Problem:
    """What is wrong and how to fix it, a line each; `stops` plain `flowkit extract`, or not."""

    what: str
    fix: str
    stops: bool = False


@dataclass(frozen=True)
class Facts:
    """All that `examine` found; `dataclasses.asdict` makes JSON values of it."""

    flowkit: str
    python: str
    machine: Hardware
    disk: Disk
    libraries: tuple[Library, ...]
    opencv: OpenCV | None
    cuda: Cuda
    codecs: dict[str, bool]
    speeds: tuple[Speed, ...] = ()
    namesake: str | None = None  # another project's distribution with a package called flowkit
    problems: tuple[Problem, ...] = field(default=(), kw_only=True)

    @property
    def can_extract(self) -> bool:
        """Whether nothing found here stops `flowkit extract` with its defaults."""
        return not any(problem.stops for problem in self.problems)

    def version(self, module: str) -> str | None:
        """The version of a library; None where it cannot be imported."""
        return next((one.version for one in self.libraries if one.module == module), None)


def examine(
    out: Path,
    *,
    speeds: bool = True,
    weights: str | None = None,
    tell: Callable[[str], None] = lambda step: None,
) -> Facts:
    """Look at everything, measure the methods unless `speeds` is False, and name the problems.

    Learned methods are measured with the file `weights`, without it they are not. Never fails for a
    library that is absent or broken. `tell` hears what is being looked at.
    """
    libraries = []
    for needs in LIBRARIES:
        tell(f"importing {needs.module}")
        libraries.append(_library(needs))
    tell("looking for an NVIDIA GPU")
    cuda = _cuda()
    facts = Facts(
        flowkit=flowkit.__version__,
        python=sys.version.split()[0],
        machine=examine_machine(),
        disk=examine_disk(out),
        libraries=tuple(libraries),
        opencv=_attempt(_opencv)[0],
        cuda=cuda,
        codecs=_attempt(_codecs)[0] or {},
        namesake=find_namesake(),
    )
    measured = []
    names = methods_on("cpu") + (() if cuda.problem else methods_on("cuda"))
    if facts.opencv and facts.opencv.cuda_flow and facts.opencv.cuda_devices:
        names += methods_on("opencv-cuda")
    if weights:
        names += methods_on("torch")
    for name in names if speeds else ():
        tell(f"measuring {name}")
        options = {"weights": weights} if name in methods_on("torch") else {}
        rate, error = _attempt(
            lambda name=name, options=options: measure_speed(make_method(name, **options))  # type: ignore[misc]
        )
        measured.append(Speed(name, rate, error))
    facts = dataclasses.replace(facts, speeds=tuple(measured))
    return dataclasses.replace(facts, problems=tuple(find_problems(facts)))


def measure_speed(method: FlowMethod) -> float:
    """Pairs/s on frames of a texture that moves, after a first pair that compiles and opens."""
    from flowkit._cv2 import cv2
    from flowkit.flow.pairs import consecutive

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one thread, as each worker of an extraction has
    try:
        _drain(method.fields(consecutive(made_frames(2))))
        count = 1
        while True:
            start = perf_counter()
            _drain(method.fields(consecutive(made_frames(count + 1))))
            seconds = perf_counter() - start
            if seconds >= SECONDS:
                return count / seconds
            count = max(count + 1, int(count * min(1.2 * SECONDS / seconds, 16)))
    finally:
        cv2.setNumThreads(threads)


def made_frames(count: int) -> Iterator[np.ndarray]:
    """Gray frames of a texture that moves to and fro by `SHIFT`: uint8 (H, W), each a new array."""
    import numpy as np

    height, width = SIZE
    canvas = np.zeros((height + SHIFT[0], width + SHIFT[1]))
    draw = np.random.default_rng(0)
    for cell in (4, 16, 64):  # px: detail, and what the coarse levels of a pyramid hold on to
        rows, columns = (-(-side // cell) + 1 for side in canvas.shape)
        coarse = draw.normal(size=(rows, columns))
        down, along = (np.arange(side) / cell for side in canvas.shape)
        there = [np.interp(along, np.arange(columns), row) for row in coarse]  # (rows, W)
        lines = np.array(there).T
        canvas += np.array([np.interp(down, np.arange(rows), line) for line in lines]).T
    canvas -= canvas.min()
    texture = (255 / canvas.max() * canvas).astype(np.uint8)
    views = texture[:height, :width], texture[SHIFT[0] :, SHIFT[1] :]
    for number in range(count):
        yield views[number % 2].copy()


def find_problems(facts: Facts) -> Iterator[Problem]:
    """What is wrong by the facts, what stops `flowkit extract` first."""
    found = [
        *_library_problems(facts),
        *_disk_problems(facts.disk),
        *_opencv_problems(facts.opencv),
        *_other_problems(facts),
    ]
    yield from sorted(found, key=lambda problem: not problem.stops)


def _library_problems(facts: Facts) -> Iterator[Problem]:
    missing = False  # a library without which no method runs, so that none need be blamed
    for needs in LIBRARIES:
        library = next(one for one in facts.libraries if one.module == needs.module)
        if library.version is not None:
            continue
        fix = f"pip install {needs.package}"
        if needs.module == "cv2":
            fix += " (or opencv-contrib-python-headless, which needs no system libraries)"
        if needs.module == "numba":
            fix += "; until then --method farneback-opencv or tvl1-opencv"
        yield Problem(
            f"{needs.module} cannot be imported ({library.error}); needed for {needs.used_by}",
            fix,
            stops=needs.by_extract,
        )
        missing = missing or needs.by_extract
    for speed in facts.speeds:
        if speed.pairs_per_s is None and not missing:
            yield Problem(
                f"--method {speed.method} fails ({speed.error})",
                "take another method, and report this",
                stops=speed.method == "tvl1",
            )


def _disk_problems(disk: Disk) -> Iterator[Problem]:
    if not disk.writable:
        yield Problem(
            f"{disk.path} cannot be written to", "name another folder with --out", stops=True
        )
    elif disk.free_bytes == 0 or disk.free_files == 0:
        yield Problem(f"the disk of {disk.path} is full", "make room, or --out", stops=True)
    elif disk.free_bytes < ROOM:
        yield Problem(
            f"the disk of {disk.path} has {disk.free_bytes / 2**30:.1f} GiB left",
            "--resize 340x256 and --no-rgb take less, --out names another place",
        )
    if disk.writable and disk.free_files and disk.free_files < FILES:
        yield Problem(
            f"the disk of {disk.path} takes {disk.free_files:,} more files, a frame makes 3",
            "extract with --pack: one file per video",
        )


def _opencv_problems(opencv: OpenCV | None) -> Iterator[Problem]:
    if opencv is None:
        return
    if not opencv.tvl1:
        yield Problem(
            "this build of OpenCV has no contrib modules, so no --method tvl1-opencv",
            f"pip uninstall -y {' '.join(opencv.packages)}; pip install opencv-contrib-python",
        )
    if len(opencv.packages) > 1:
        yield Problem(
            f"{' and '.join(opencv.packages)} are both installed and overwrite each other's files",
            f"pip uninstall -y {' '.join(opencv.packages)}; pip install opencv-contrib-python",
        )


def _other_problems(facts: Facts) -> Iterator[Problem]:
    if facts.namesake:
        name = facts.namesake.split()[0]
        yield Problem(
            f"{facts.namesake}, of another project, is installed here and also owns the folder "
            "flowkit/: each overwrites the other's files",
            f"pip uninstall -y {name}, then install flowkit-video again; or use two environments",
        )
    if facts.cuda.problem:
        reason, _, fix = facts.cuda.problem.rpartition(": ")
        yield Problem(f"no --method tvl1-cuda or farneback-cuda: {reason or fix}", fix)
    missing = [name for name in NEEDED_CODECS if not facts.codecs.get(name)]
    if missing and facts.version("av"):
        yield Problem(
            f"PyAV's FFmpeg cannot decode {', '.join(missing)}",
            "pip install --force-reinstall av, whose wheels can",
        )
    shared = facts.machine.shared_bytes
    if shared is None or shared < SHARED:
        has = "is not there" if shared is None else f"has {shared / 2**20:.0f} MiB"
        yield Problem(
            f"/dev/shm {has}, by which loaders of training hand over batches (bus errors)",
            "docker run --shm-size=8g, or train with --workers 0",
        )


def find_namesake() -> str | None:
    """Name and version of another project's distribution called flowkit; None if there is none."""
    try:
        found = metadata.distribution("flowkit")
    except metadata.PackageNotFoundError:
        return None
    if any(entry.value.startswith("flowkit_cli") for entry in found.entry_points):
        return None  # flowkit-video under the name that it had up to 0.1.0
    return f"{found.metadata['Name']} {found.version}"


def _library(needs: Needs) -> Library:
    module, error = _attempt(lambda: importlib.import_module(needs.module))
    if module is None:
        return Library(needs.module, None, error)
    version = getattr(module, "__version__", None)
    if version is None:
        version = _attempt(lambda: metadata.version(needs.package))[0]
    return Library(needs.module, str(version or "of unknown version"), "")


def _opencv() -> OpenCV:
    from flowkit._cv2 import cv2

    cuda = getattr(cv2, "cuda", None)
    flow = ("OpticalFlowDual_TVL1", "FarnebackOpticalFlow", "BroxOpticalFlow")
    count = _attempt(cuda.getCudaEnabledDeviceCount)[0] if cuda else 0
    names = ("opencv-contrib-python", "opencv-python")
    return OpenCV(
        tvl1=hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create"),
        cuda_flow=tuple(name for name in flow if hasattr(cuda, f"{name}_create")),
        cuda_devices=max(count or 0, 0),
        packages=tuple(
            name
            for name in (*names, *(f"{name}-headless" for name in names))
            if _attempt(lambda name=name: metadata.version(name))[0]  # type: ignore[misc]
        ),
    )


def _codecs() -> dict[str, bool]:
    import av

    return {name: _attempt(lambda name=name: av.Codec(name, "r"))[0] is not None for name in CODECS}  # type: ignore[misc]


def _cuda() -> Cuda:
    def open_gpu() -> Any:
        from flowkit.flow.cuda import device, tvl1

        return device.open_gpu(tvl1.SOURCE)

    def compiler() -> str:
        nvrtc = importlib.import_module("cuda.bindings.nvrtc")
        _, major, minor = nvrtc.nvrtcVersion()
        return f"{major}.{minor}"

    def devices() -> tuple[str, ...]:
        cuda = importlib.import_module("torch").cuda
        found = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
        return tuple(
            f"{one.name}, compute capability {one.major}.{one.minor}, "
            f"{one.total_memory / 2**30:.1f} GiB"
            for one in found
        )

    return Cuda(
        problem=_attempt(open_gpu)[1],
        driver=driver_release(DRIVER.read_text(encoding="utf-8")) if DRIVER.exists() else None,
        torch=_attempt(lambda: importlib.import_module("torch").version.cuda)[0],
        compiler=_attempt(compiler)[0],
        devices=_attempt(devices)[0] or (),
    )


def driver_release(text: str) -> str | None:
    """The release in the text of /proc/driver/nvidia/version: "570.124.06"."""
    found = re.search(r"Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return found[1] if found else None


def _attempt(call: Callable[[], Any]) -> tuple[Any, str]:
    """What a call gives and "", or None and the reason: a broken library may raise anything."""
    try:
        return call(), ""
    except Exception as error:
        return None, str(error).partition("\n")[0] or type(error).__name__


def _drain(values: Iterable[Any]) -> None:
    for _ in values:
        pass
