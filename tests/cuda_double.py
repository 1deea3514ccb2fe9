"""A double of ``cv2.cuda``: it records what is asked of it, and computes late, on the processor.

Names and parameters are those of the bindings that OpenCV 5.0 generates with CUDA. Nothing happens
before a stream is waited for, as on a GPU: what is read too early is NaN, what is overwritten
too early is wrong.
"""

import cv2
import numpy as np


class CudaDouble:
    """Stands in place of the module; `log` holds ("upload", array), ("calc",), ("download",)."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.log: list[tuple] = []
        self.created: list[dict] = []
        self.mats = 0

    def getCudaEnabledDeviceCount(self):
        return self.gpus

    def GpuMat(self):
        self.mats += 1
        return _GpuMat(self)

    def Stream(self):
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


class _Stream:
    def __init__(self):
        self.waiting = []

    def waitForCompletion(self):
        for work in self.waiting:
            work()
        self.waiting.clear()


class _GpuMat:
    def __init__(self, double):
        self.double, self.pixels, self.size = double, None, None

    def upload(self, arr, *, stream):
        assert arr.flags.c_contiguous and arr.ndim == 2
        self.double.log.append(("upload", arr))
        self.size = arr.shape
        stream.waiting.append(lambda: setattr(self, "pixels", arr.copy()))

    def download(self, *, stream):
        self.double.log.append(("download",))
        there = np.full((*self.size, 2), np.nan, np.float32)
        stream.waiting.append(lambda: np.copyto(there, self.pixels))
        return there


class _Algorithm:
    def __init__(self, double, algorithm, types):
        self.double, self.algorithm, self.types = double, algorithm, types

    def calc(self, I0, I1, flow, *, stream):
        assert isinstance(I0, _GpuMat) and isinstance(I1, _GpuMat) and isinstance(flow, _GpuMat)
        self.double.log.append(("calc",))
        flow.size = I0.size

        def work():
            assert I0.pixels.dtype in self.types and I1.pixels.shape == I0.pixels.shape
            flow.pixels = self.algorithm.calc(I0.pixels, I1.pixels, None)

        stream.waiting.append(work)
        return flow
