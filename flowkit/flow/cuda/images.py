"""CUDA C++ of what every method does on the GPU: frames to floats, resizing, fields to bytes.

A plane is a float32 image whose rows are `pitch` apart (`pitch_of`). Sources are C++ text because
NVRTC, which torch's wheels bring, compiles it on the user's machine: no compiler is installed.
The same text runs on a processor in the tests, thread by thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from flowkit.flow.cuda.device import Queue, Reading

BLOCK = (32, 8, 1)  # threads of the kernels that give a pixel to a thread

SOURCE = r"""
#define FULL 0xffffffffu

// The two samples and the weight of the second for a bilinear resize to pixel i. Half-pixel
// centers are OpenCV's CPU convention, aligned corners that of its CUDA code.
__device__ __forceinline__ void bilinear_taps(
    int i, double scale, int size, int corners, int& first, int& second, float& weight)
{
    float at = corners ? (float)i * (float)scale : (float)((i + 0.5) * scale - 0.5);
    first = (int)floorf(at);
    weight = at - (float)first;
    if (first < 0) { first = 0; weight = 0.0f; }
    if (first >= size - 1) { first = size - 1; weight = 0.0f; }
    second = min(first + 1, size - 1);
}

__device__ __forceinline__ float bilinear(
    const float* plane, int pitch, int x0, int x1, float wx, int y0, int y1, float wy)
{
    const float* top = plane + (size_t)y0 * pitch;
    const float* bottom = plane + (size_t)y1 * pitch;
    float upper = top[x0] * (1.0f - wx) + top[x1] * wx;
    float lower = bottom[x0] * (1.0f - wx) + bottom[x1] * wx;
    return upper * (1.0f - wy) + lower * wy;
}

// Frames, uint8 (F, h, w), to the first plane of each frame's images, 0 to 255.
extern "C" __global__ void to_float(
    const unsigned char* frames, float* images, long long frame_stride, int h, int w, int pitch)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    size_t frame = blockIdx.z;
    images[frame * frame_stride + (size_t)y * pitch + x] =
        (float)frames[(frame * h + y) * w + x];
}

// One plane of every frame to another size.
extern "C" __global__ void resize_planes(
    const float* source, long long source_stride, int h0, int w0, int pitch0,
    float* target, long long target_stride, int h, int w, int pitch,
    double scale_y, double scale_x, float gain, int corners)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    int x0, x1, y0, y1;
    float wx, wy;
    bilinear_taps(x, scale_x, w0, corners, x0, x1, wx);
    bilinear_taps(y, scale_y, h0, corners, y0, y1, wy);
    target[blockIdx.z * target_stride + (size_t)y * pitch + x] =
        gain * bilinear(source + blockIdx.z * source_stride, pitch0, x0, x1, wx, y0, y1, wy);
}

// The u plane of a pair: in the buffer that `which` names, or in the only one.
__device__ __forceinline__ const float* flow_of(
    const float* flow, long long plane, long long buffer, const int* which, int which_stride,
    int pair)
{
    if (which != nullptr) flow += which[pair * which_stride] * buffer;
    return flow + pair * 2 * plane;
}

// The planes u and v of each pair to fields (N, h, w, 2).
extern "C" __global__ void pack_field(
    const float* flow, long long plane, long long buffer, const int* which, int which_stride,
    float* field, int h, int w, int pitch)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    size_t pair = blockIdx.z;
    const float* u = flow_of(flow, plane, buffer, which, which_stride, pair);
    float* out = field + ((pair * h + y) * w + x) * 2;
    out[0] = u[(size_t)y * pitch + x];
    out[1] = u[plane + (size_t)y * pitch + x];
}

// The least and greatest value of each component: extremes (N, 2, 2); NaN where one is not finite.
extern "C" __global__ void __launch_bounds__(512) find_extremes(
    const float* flow, long long plane, long long buffer, const int* which, int which_stride,
    float* extremes, int h, int w, int pitch)
{
    __shared__ float lows[16], highs[16];
    int component = blockIdx.x, pair = blockIdx.y;
    const float* values =
        flow_of(flow, plane, buffer, which, which_stride, pair) + component * plane;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    float low = 3.402823466e38f, high = -3.402823466e38f, wrong = 0.0f;
    for (int y = warp; y < h; y += 16)
        for (int x = lane; x < w; x += 32) {
            float value = values[(size_t)y * pitch + x];
            if (!(fabsf(value) <= 3.402823466e38f)) wrong = 1.0f;
            low = fminf(low, value);
            high = fmaxf(high, value);
        }
    for (int step = 16; step > 0; step >>= 1) {
        low = fminf(low, __shfl_xor_sync(FULL, low, step));
        high = fmaxf(high, __shfl_xor_sync(FULL, high, step));
        wrong = fmaxf(wrong, __shfl_xor_sync(FULL, wrong, step));
    }
    if (lane == 0) {
        lows[warp] = wrong > 0.0f ? nanf("") : low;
        highs[warp] = high;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int i = 0; i < 16; ++i) {
        if (!(lows[i] == lows[i])) wrong = 1.0f;
        low = fminf(low, lows[i]);
        high = fmaxf(high, highs[i]);
    }
    extremes[(pair * 2 + component) * 2] = wrong > 0.0f ? nanf("") : low;
    extremes[(pair * 2 + component) * 2 + 1] = wrong > 0.0f ? nanf("") : high;
}

// The range of a component. Where zero lies strictly inside, one end is widened so that zero is
// exactly a code: the same steps in double as flowkit.quantize.own_range.
__device__ void zero_on_a_code(double& lo, double& hi)
{
    if (!(lo < 0.0 && 0.0 < hi)) return;
    double zero = -lo / (hi - lo) * 255.0;
    double best = 0.0, best_code = 0.0;
    for (int side = 0; side < 2; ++side) {
        double code = fmin(fmax(side ? ceil(zero) : floor(zero), 1.0), 254.0);
        double step = fmax(-lo / code, hi / (255.0 - code));
        if (side == 0 || step < best) { best = step; best_code = code; }
    }
    lo = -best_code * best;
    hi = (255.0 - best_code) * best;
}

// Planes uint8 (N, 2, h, w) of the fields, and ranges (N, 2, 2): +-bound px or, where bound is 0,
// each component's own by `extremes`. Product and sum are rounded each, as in flowkit.quantize.
extern "C" __global__ void quantize_field(
    const float* flow, long long plane, long long buffer, const int* which, int which_stride,
    const float* extremes, double bound, unsigned char* planes, float* ranges,
    int h, int w, int pitch)
{
    int component = blockIdx.z & 1, pair = blockIdx.z >> 1;
    int index = pair * 2 + component;
    double lo = -128.0 * (bound / 127.0), hi = bound;
    if (!(bound > 0.0)) {
        lo = extremes[2 * index];
        hi = extremes[2 * index + 1];
        zero_on_a_code(lo, hi);
        lo = (float)lo;
        hi = (float)hi;
    }
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && threadIdx.y == 0) {
        float extreme = extremes[2 * index];  // NaN is refused under a bound, too
        ranges[2 * index] = extreme == extreme ? (float)lo : extreme;
        ranges[2 * index + 1] = extreme == extreme ? (float)hi : extreme;
    }
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    float value = flow_of(flow, plane, buffer, which, which_stride, pair)[
        component * plane + (size_t)y * pitch + x];
    float code = 0.0f;
    if (hi != lo) {
        if (bound > 0.0) value = fminf(fmaxf(value, -(float)bound), (float)bound);
        double zero = -lo * 255.0 / (hi - lo);
        if (fabs(zero - rint(zero)) < 1e-3) zero = rint(zero);
        code = __fadd_rn(__fmul_rn(value, (float)(255.0 / (hi - lo))), (float)zero);
        code = fminf(fmaxf(rintf(code), 0.0f), 255.0f);
    }
    planes[((size_t)index * h + y) * w + x] = (unsigned char)code;
}
"""


@dataclass(frozen=True)
class Flow:
    """Where the flow of a batch lies: u and v planes of each pair, in one of two buffers or in one.

    `plane` and `buffer` are sizes in floats; `which` is an array of the device whose every
    `which_stride`-th int names a pair's buffer, None for the only one.
    """

    planes: Any
    size: tuple[int, int]
    plane: int
    buffer: int = 0
    which: Any = None
    which_stride: int = 0

    def arguments(self) -> tuple[Any, ...]:
        return self.planes, self.plane, self.buffer, self.which, self.which_stride


@dataclass(frozen=True)
class Level:
    """One scale of a pyramid: its size, where its plane begins in a frame's images if it is kept
    there, and its size against the frame's.
    """

    height: int
    width: int
    offset: int = 0
    scale: float = 1.0

    @property
    def pitch(self) -> int:
        return pitch_of(self.width)

    @property
    def plane(self) -> int:
        return self.height * self.pitch


class Frames:
    """Memory on a device for the frames of a batch, at most `capacity`, and the pairs they make.

    `images` are float32 (capacity, stride): of each frame the plane of its pixels, and room for
    smaller ones behind it. `pairs` is int32 (pairs, 2): which two frames make each pair.
    """

    def __init__(
        self, queue: Queue, size: tuple[int, int], pairs: int, *, capacity: int, stride: int
    ) -> None:
        self.queue, self.size, self.stride = queue, size, stride
        self.pixels = queue.empty((capacity, *size), "uint8")
        self.pairs = queue.empty((pairs, 2), "int32")
        self.images = queue.empty((capacity, stride), "float32")

    def write(self, frames: list[np.ndarray], frame_of: np.ndarray) -> None:
        """Put gray frames there, uint8 (H, W), also as images, and the pairs of `frame_of`."""
        self.queue.write(self.pixels, frames)
        self.queue.write(self.pairs, frame_of)
        self.queue.launch(
            "to_float", blocks_of(*self.size, len(frames)), BLOCK,
            self.pixels, self.images, self.stride, *self.size, pitch_of(self.size[1]),
        )  # fmt: skip

    def at(self, level: Level) -> Any:
        """The images from the plane of a level on."""
        return self.images[:, level.offset :]


def read_fields(queue: Queue, flow: Flow, count: int) -> Reading:
    """Begin to fetch the fields of a batch, float32 (count, H, W, 2) px."""
    height, width = flow.size
    field = queue.empty((count, height, width, 2), "float32")
    queue.launch(
        "pack_field", blocks_of(height, width, count), BLOCK,
        *flow.arguments(), field, height, width, pitch_of(width),
    )  # fmt: skip
    return queue.read(field)


def read_planes(
    queue: Queue, flow: Flow, count: int, bound: float | None
) -> tuple[Reading, Reading]:
    """Begin to fetch planes uint8 (count, 2, H, W) and ranges float32 (count, 2, 2).

    `bound` in px fixes the range, None takes each component's own, as `records.formats` does. Both
    ends of a range are NaN where the field is not finite.
    """
    height, width = flow.size
    extremes = queue.empty((count, 2, 2), "float32")
    planes = queue.empty((count, 2, height, width), "uint8")
    ranges = queue.empty((count, 2, 2), "float32")
    queue.launch(
        "find_extremes", (2, count, 1), (512, 1, 1),
        *flow.arguments(), extremes, height, width, pitch_of(width),
    )  # fmt: skip
    queue.launch(
        "quantize_field", blocks_of(height, width, 2 * count), BLOCK,
        *flow.arguments(), extremes, bound or 0.0, planes, ranges, height, width, pitch_of(width),
    )  # fmt: skip
    return queue.read(planes), queue.read(ranges)


def pitch_of(width: int) -> int:
    """Floats from row to row of a plane: whole lines of 128 bytes, for coalesced access."""
    return -(-width // 32) * 32


def blocks_of(height: int, width: int, depth: int) -> tuple[int, int, int]:
    """The grid that covers `depth` planes with blocks of BLOCK."""
    return -(-width // BLOCK[0]), -(-height // BLOCK[1]), depth
