"""A double of ``cv2.cuda``: it records what is asked of it, and computes late, on the processor.

Names and parameters are those of the bindings that OpenCV 5.0 generates with CUDA. Nothing happens
before a stream is waited for, as on a GPU: what is read too early is NaN, what is overwritten
too early is wrong.
"""

import cv2
import numpy as np


class CudaDouble:
    """Stands in place of the module; `log` holds ("upload", array), ("calc",), ("download",).

    `gpus` is what counting them gives, or raises; without a count before, every call fails, as
    the real ones end the process where the driver fails. `memories` counts allocations.
    """

    def __init__(self, gpus: int | Exception = 1, *, compatible: bool = True) -> None:
        self.gpus, self.compatible = gpus, compatible
        self.log: list[tuple] = []
        self.created: list[dict] = []
        self.memories = 0
        self.counted = False

    def getCudaEnabledDeviceCount(self):
        self.counted = True
        if isinstance(self.gpus, Exception):
            raise self.gpus
        return self.gpus

    def getDevice(self):
        assert self.counted
        return 0

    def DeviceInfo(self, device):
        assert self.counted and device == 0
        return _DeviceInfo(self.compatible)

    def GpuMat(self):
        assert self.counted
        return _GpuMat(self)

    def Stream(self):
        assert self.counted
        return _Stream()

    def OpticalFlowDual_TVL1_create(
        self, *, tau, lambda_, theta, nscales, warps, epsilon, iterations, scaleStep, gamma,
        useInitialFlow,
    ):  # fmt: skip
        self.created.append(dict(tau=tau, nscales=nscales, iterations=iterations, gamma=gamma))
        algorithm = cv2.optflow.DualTVL1OpticalFlow_create(
            tau=tau, lambda_=lambda_, theta=theta, nscales=nscales, warps=warps, epsilon=epsilon,
            scaleStep=scaleStep, gamma=gamma, outerIterations=1, innnerIterations=iterations,
        )  # fmt: skip
        return _Algorithm(self, algorithm, (np.uint8, np.float32))

    def FarnebackOpticalFlow_create(
        self, *, numLevels, pyrScale, fastPyramids, winSize, numIters, polyN, polySigma, flags
    ):
        self.created.append(dict(winSize=winSize, flags=flags))
        algorithm = cv2.FarnebackOpticalFlow_create(
            numLevels, pyrScale, fastPyramids, winSize, numIters, polyN, polySigma, flags
        )
        return _Algorithm(self, algorithm, (np.uint8,))

    def BroxOpticalFlow_create(
        self, *, alpha, gamma, scale_factor, inner_iterations, outer_iterations, solver_iterations
    ):
        self.created.append(dict(alpha=alpha, gamma=gamma, outer=outer_iterations))
        return _Algorithm(self, cv2.optflow.DualTVL1OpticalFlow_create(), (np.float32,))


class _DeviceInfo:
    def __init__(self, compatible):
        self.compatible = compatible

    def isCompatible(self):
        return self.compatible

    def majorVersion(self):
        return 8

    def minorVersion(self):
        return 6


class _Stream:
    def __init__(self):
        self.waiting = []

    def waitForCompletion(self):
        for work in self.waiting:
            work()
        self.waiting.clear()


class _Memory:
    """Of the GPU, that one or several `_GpuMat` are headers of."""

    def __init__(self, double, size):
        double.memories += 1
        self.size, self.pixels = size, None


class _GpuMat:
    def __init__(self, double, memory=None):
        self.double, self.memory = double, memory

    def fitting(self, size):
        """The memory it has, if that is of this size, else new memory."""
        if self.memory is None or self.memory.size != size:
            return _Memory(self.double, size)
        return self.memory

    def upload(self, arr, *, stream):
        assert arr.flags.c_contiguous and arr.ndim == 2
        self.double.log.append(("upload", arr))
        self.memory = memory = self.fitting(arr.shape)
        stream.waiting.append(lambda: setattr(memory, "pixels", arr.copy()))

    def download(self, *, stream):
        self.double.log.append(("download",))
        memory = self.memory
        there = np.full(memory.size, np.nan, np.float32)
        stream.waiting.append(lambda: np.copyto(there, memory.pixels))
        return there


class _Algorithm:
    def __init__(self, double, algorithm, types):
        self.double, self.algorithm, self.types = double, algorithm, types

    def calc(self, I0, I1, flow, *, stream):
        """A new header, of the memory that `flow` had: `flow` itself stays as it is."""
        assert isinstance(I0, _GpuMat) and isinstance(I1, _GpuMat) and isinstance(flow, _GpuMat)
        self.double.log.append(("calc",))
        first, second = I0.memory, I1.memory
        memory = flow.fitting((*first.size, 2))

        def work():
            assert first.pixels.dtype in self.types and second.size == first.size
            memory.pixels = self.algorithm.calc(first.pixels, second.pixels, None)

        stream.waiting.append(work)
        return _GpuMat(self.double, memory)
