"""CUDA C++ of Farneback's method: a thread per pixel, a kernel per step, weights as arrays.

A pixel takes few operations and little memory traffic (a hundredth of TV-L1's), so steps are not
fused. Every convolution is separable: weights[0..radius] of the center and outward.
"""

from __future__ import annotations

SOURCE = r"""
__device__ __forceinline__ bool pixel_of(int h, int w, int& x, int& y)
{
    x = blockIdx.x * blockDim.x + threadIdx.x;
    y = blockIdx.y * blockDim.y + threadIdx.y;
    return x < w && y < h;
}

// The index mirrored at the edges, their pixels not repeated (reflect 101).
__device__ __forceinline__ int mirrored(int i, int size)
{
    if (size == 1) return 0;
    while (i < 0 || i >= size) i = i < 0 ? -i : 2 * size - 2 - i;
    return i;
}

// One direction of a symmetric filter over a plane of every frame, edges mirrored.
extern "C" __global__ void blur_image(
    const float* source, float* target, long long source_stride, long long target_stride,
    int h, int w, int pitch, const float* weights, int radius, int vertical)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    const float* image = source + blockIdx.z * source_stride;
    float sum = weights[0] * image[(size_t)y * pitch + x];
    for (int k = 1; k <= radius; ++k) {
        float before, after;
        if (vertical) {
            before = image[(size_t)mirrored(y - k, h) * pitch + x];
            after = image[(size_t)mirrored(y + k, h) * pitch + x];
        } else {
            before = image[(size_t)y * pitch + mirrored(x - k, w)];
            after = image[(size_t)y * pitch + mirrored(x + k, w)];
        }
        sum += weights[k] * (before + after);
    }
    target[blockIdx.z * target_stride + (size_t)y * pitch + x] = sum;
}

// Every second pixel of every second row of planes (h0, w0): pyrDown, after the 1 4 6 4 1 blur.
extern "C" __global__ void take_half(
    const float* source, float* target, long long source_stride, long long target_stride,
    int pitch0, int h, int w, int pitch)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    target[blockIdx.z * target_stride + (size_t)y * pitch + x] =
        source[blockIdx.z * source_stride + (size_t)(2 * y) * pitch0 + 2 * x];
}

// The vertical part of the polynomial expansion: (F) planes -> (F, 3), sums with g, x g, x^2 g.
extern "C" __global__ void expand_columns(
    const float* image, float* sums, long long image_stride, long long plane,
    int h, int w, int pitch, const float* g, int n)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    const float* column = image + blockIdx.z * image_stride + x;
    float t0 = column[(size_t)y * pitch] * g[0], t1 = 0.0f, t2 = 0.0f;
    for (int k = 1; k <= n; ++k) {
        float above = column[(size_t)max(y - k, 0) * pitch];
        float below = column[(size_t)min(y + k, h - 1) * pitch];
        float weight = g[k], offset = (float)k;
        t0 += weight * (above + below);
        t1 += offset * weight * (below - above);
        t2 += offset * offset * weight * (above + below);
    }
    float* out = sums + blockIdx.z * 3 * plane + (size_t)y * pitch + x;
    out[0] = t0;
    out[plane] = t1;
    out[2 * plane] = t2;
}

// The horizontal part, and the inverse of the normal matrix: (F, 3) -> (F, 5) coefficients
// of y, x, y^2, x^2 and x y.
extern "C" __global__ void expand_rows(
    const float* sums, float* expansion, long long plane, int h, int w, int pitch,
    const float* g, int n, float ig11, float ig03, float ig33, float ig55)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    const float* r0 = sums + blockIdx.z * 3 * plane + (size_t)y * pitch;
    const float* r1 = r0 + plane;
    const float* r2 = r1 + plane;
    float b1 = r0[x] * g[0], b2 = 0.0f, b3 = r1[x] * g[0], b4 = 0.0f, b5 = r2[x] * g[0], b6 = 0.0f;
    for (int k = 1; k <= n; ++k) {
        int left = max(x - k, 0), right = min(x + k, w - 1);
        float weight = g[k], first = (float)k * weight, second = (float)k * first;
        float both = r0[right] + r0[left];
        b1 += weight * both;
        b4 += second * both;
        b2 += first * (r0[right] - r0[left]);
        b3 += weight * (r1[right] + r1[left]);
        b6 += first * (r1[right] - r1[left]);
        b5 += weight * (r2[right] + r2[left]);
    }
    float* out = expansion + blockIdx.z * 5 * plane + (size_t)y * pitch + x;
    out[0] = b3 * ig11;
    out[plane] = b2 * ig11;
    out[2 * plane] = b1 * ig03 + b5 * ig33;
    out[3 * plane] = b1 * ig03 + b4 * ig33;
    out[4 * plane] = b6 * ig55;
}

// The weight of a pixel: less for the outer five.
__device__ __forceinline__ float edge_weight(int i, int size)
{
    float weight = 1.0f;
    if (i < 5) weight = i < 2 ? 0.14f : 0.4472f;
    if (i >= size - 5) weight *= size - 1 - i < 2 ? 0.14f : 0.4472f;
    return weight;
}

// The normal equations of each pixel at the present flow: (N, 5) planes.
extern "C" __global__ void update_matrices(
    const float* expansion, const int* frame_of, const float* flow, long long flow_plane,
    float* matrices, long long plane, int h, int w, int pitch)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    size_t pair = blockIdx.z, at = (size_t)y * pitch + x;
    const float* r0 = expansion + (size_t)frame_of[2 * pair] * 5 * plane + at;
    const float* r1 = expansion + (size_t)frame_of[2 * pair + 1] * 5 * plane;
    float dx = flow[pair * 2 * flow_plane + at], dy = flow[(pair * 2 + 1) * flow_plane + at];
    float fx = (float)x + dx, fy = (float)y + dy;
    float left = floorf(fx), top = floorf(fy);
    float c[5];
    if (left >= 0.0f && left < (float)(w - 1) && top >= 0.0f && top < (float)(h - 1)) {
        fx -= left;
        fy -= top;
        float a00 = (1.0f - fx) * (1.0f - fy), a01 = fx * (1.0f - fy);
        float a10 = (1.0f - fx) * fy, a11 = fx * fy;
        const float* p = r1 + (size_t)(int)top * pitch + (int)left;
        for (int i = 0; i < 5; ++i, p += plane)
            c[i] = a00 * p[0] + a01 * p[1] + a10 * p[pitch] + a11 * p[pitch + 1];
        c[2] = (r0[2 * plane] + c[2]) * 0.5f;
        c[3] = (r0[3 * plane] + c[3]) * 0.5f;
        c[4] = (r0[4 * plane] + c[4]) * 0.25f;
    } else {
        c[0] = c[1] = 0.0f;
        c[2] = r0[2 * plane];
        c[3] = r0[3 * plane];
        c[4] = r0[4 * plane] * 0.5f;
    }
    c[0] = (r0[0] - c[0]) * 0.5f + c[2] * dy + c[4] * dx;
    c[1] = (r0[plane] - c[1]) * 0.5f + c[4] * dy + c[3] * dx;
    float scale = edge_weight(x, w) * edge_weight(y, h);
    for (int i = 0; i < 5; ++i) c[i] *= scale;
    float* out = matrices + pair * 5 * plane + at;
    out[0] = c[2] * c[2] + c[4] * c[4];
    out[plane] = (c[2] + c[3]) * c[4];
    out[2 * plane] = c[3] * c[3] + c[4] * c[4];
    out[3 * plane] = c[2] * c[0] + c[4] * c[1];
    out[4 * plane] = c[4] * c[0] + c[3] * c[1];
}

// The vertical half of the averaging window over the matrices, edges repeated.
extern "C" __global__ void average_columns(
    const float* matrices, float* sums, long long plane, int h, int w, int pitch,
    const float* weights, int radius)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    const float* column = matrices + blockIdx.z * plane + x;
    float sum = weights[0] * column[(size_t)y * pitch];
    for (int k = 1; k <= radius; ++k)
        sum += weights[k] * (column[(size_t)max(y - k, 0) * pitch]
                             + column[(size_t)min(y + k, h - 1) * pitch]);
    sums[blockIdx.z * plane + (size_t)y * pitch + x] = sum;
}

// The horizontal half, and the flow that solves the averaged equations.
extern "C" __global__ void average_rows_and_solve(
    const float* sums, float* flow, long long plane, long long flow_plane, int h, int w, int pitch,
    const float* weights, int radius)
{
    int x, y;
    if (!pixel_of(h, w, x, y)) return;
    size_t pair = blockIdx.z;
    const float* row = sums + pair * 5 * plane + (size_t)y * pitch;
    float s[5];
    for (int i = 0; i < 5; ++i, row += plane) {
        s[i] = weights[0] * row[x];
        for (int k = 1; k <= radius; ++k)
            s[i] += weights[k] * (row[max(x - k, 0)] + row[min(x + k, w - 1)]);
    }
    float inverse = 1.0f / (s[0] * s[2] - s[1] * s[1] + 1e-3f);
    float* out = flow + pair * 2 * flow_plane + (size_t)y * pitch + x;
    out[0] = (s[0] * s[4] - s[1] * s[3]) * inverse;
    out[flow_plane] = (s[2] * s[3] - s[1] * s[4]) * inverse;
}
"""
