"""CUDA C++ of TV-L1: several iterations a pass in tiles held in registers, the stop test on device.

A block of 512 threads holds a tile of 64 x 64 px: each warp a strip of 64 x 4, each thread 2 x 4 px
of u, v, the four dual planes and the data term. An iteration reads one pixel beyond each side, so
after n <= HALO of them the tile is right but for n px at its sides: a pass writes its inner part,
and tiles overlap by 2 HALO. The first tile needs no halo at an edge of the frame.

Passes go from one buffer to the other, so what a pass began with is still there: if the error of
iteration j of n already meets the stop test, the pair's next pass repeats j iterations from there.
So a warp ends after exactly the iteration that the one-by-one algorithm ends after. The last block
of a pair to finish adds up the errors in a fixed order and decides; the host only looks, a round
late, whether every pair is done.

The pairs still at work stand in a list on the device, which every kernel makes for the next (in any
order: a pair depends on no other). As many blocks as the GPU has multiprocessors go through their
tiles, so pairs that have ended cost nothing. Three lists take turns: one is read, one is written,
one is emptied.

A block is alone on its multiprocessor, so it must wait for nothing itself: the planes of its next
tile come to shared memory while it works on this one, and it tells that a tile is written only
after the iterations of the next.
"""

from __future__ import annotations

TILE = 64  # px; side of a tile
HALO = 6  # iterations per pass; it divides OpenCV's 30 between two medians
STEP = TILE - 2 * HALO  # px from tile to tile
ROWS, WARPS = 4, 16  # height of a strip in px; strips of a tile, one for each warp
THREADS = 32 * WARPS
STAGING_BYTES = 9 * 4 * TILE * TILE  # shared memory for the planes of a tile
DECLARED_BYTES = 22 << 10  # shared memory that `iterate` itself declares, rounded up
BORDER = 8  # px of zeros around the sampled image: taps of a clamped position reach 5 outside
STATE_INTS = 12  # size of struct State in 4-byte words

CONSTANTS = f"""
#define HALO {HALO}
#define STEP {STEP}
#define ROWS {ROWS}
#define WARPS {WARPS}
#define BORDER {BORDER}
"""

SOURCE = (
    CONSTANTS
    + r"""
#define ITERATIONS(entry) ((entry) >> 16 & 15)
#define UNIFORM(value) __shfl_sync(FULL, value, 0)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
#define BRINGS 1
#endif
#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

struct State {      // the state of one pair
    int flow;       // which of the two buffers holds u and v
    int dual;       // which of the two buffers holds the dual field
    int left;       // iterations up to the next median
    int rounds;     // medians still to come in this warp
    int redo;       // iterations to repeat in the next pass
    int done;       // 1 when the warp has ended
    int ticket;     // blocks of the running kernel that have finished
    int count;      // iterations of this warp
    double former;  // OpenCV CUDA's error of the last test, less the stop value each iteration
    long long work;  // pixels times iterations, of all warps and scales
};

// Whether this block is the last of the pair's `blocks` of the running kernel: it may then read
// what the others wrote. One thread asks, after a barrier behind what its block wrote.
__device__ __forceinline__ bool is_last(State* state, int blocks)
{
    int before;
#ifdef __CUDA_ARCH__
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"  // cheaper than two __threadfence
                 : "=r"(before) : "l"(&state->ticket) : "memory");
#else
    before = atomicAdd(&state->ticket, 1);
#endif
    if (before < blocks - 1) return false;
    state->ticket = 0;
    return true;
}

// Copies of 4 or 16 bytes to shared memory, which go on meanwhile; `arrived` waits for this
// thread's.
__device__ __forceinline__ void bring(float* to, const float* from)
{
#if BRINGS
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"(place), "l"(from) : "memory");
#else
    *to = *from;
#endif
}

__device__ __forceinline__ void bring(float4* to, const float* from)
{
#if BRINGS
    unsigned place = (unsigned)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(place), "l"(from) : "memory");
#else
    *to = *(const float4*)from;
#endif
}

__device__ __forceinline__ void arrived()
{
#if BRINGS
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// A pair at work, as a list names it: its number, the iterations of its next pass (0: it waits for
// a median), and the buffers that hold its fields.
__device__ __forceinline__ int entry_of(const State* state, int pair)
{
    int n = state->redo ? state->redo : min(HALO, state->left);
    return pair | n << 16 | state->flow << 20 | state->dual << 21;
}

// A list: how many pairs work, how many wait for a median, and how many tiles have been taken by
// blocks after their first two; then the entries of those that work, then of those that
// wait, with room for all pairs each.
#define WORKING(list) (list)[0]
#define WAITING(list) (list)[1]
#define TAKEN(list) (list)[2]
__device__ __forceinline__ int* entries(int* list, int list_stride, int waiting)
{
    return list + 3 + (waiting ? (list_stride - 3) / 2 : 0);
}

__device__ __forceinline__ void append(int* list, int list_stride, int entry)
{
    int waits = ITERATIONS(entry) == 0;
    entries(list, list_stride, waits)[atomicAdd(&list[waits], 1)] = entry;
}

__device__ __forceinline__ void empty(int* list)
{
    WORKING(list) = WAITING(list) = TAKEN(list) = 0;
}

// I1, I1x and I1y side by side, zero around: samples (F, h + 2 BORDER, w + 2 BORDER), one level.
extern "C" __global__ void gradients(
    const float* images, long long frame_stride, float4* samples, long long sample_stride,
    int h, int w, int pitch)
{
    int x = blockIdx.x * blockDim.x + threadIdx.x - BORDER;
    int y = blockIdx.y * blockDim.y + threadIdx.y - BORDER;
    if (x >= w + BORDER || y >= h + BORDER) return;
    float4 sample = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (x >= 0 && x < w && y >= 0 && y < h) {
        const float* image = images + blockIdx.z * frame_stride;
        const float* row = image + (size_t)y * pitch;
        sample.x = row[x];
        sample.y = 0.5f * (row[min(x + 1, w - 1)] - row[max(x - 1, 0)]);
        sample.z = 0.5f * (image[(size_t)min(y + 1, h - 1) * pitch + x]
                           - image[(size_t)max(y - 1, 0) * pitch + x]);
    }
    samples[blockIdx.z * sample_stride
            + (size_t)(y + BORDER) * (w + 2 * BORDER) + x + BORDER] = sample;
}

// The u and v of the next coarser scale (zeros where h0 is 0), and a dual field of zeros.
extern "C" __global__ void enter_scale(
    float* flow, float* dual, State* states, long long flow_buffer, long long dual_buffer,
    long long plane, int h0, int w0, int pitch0, int h, int w, int pitch,
    double scale_y, double scale_x, float gain, int corners)
{
    State* state = states + blockIdx.z;
    int from = state->flow, dual_at = state->dual;
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x < w && y < h) {
        size_t at = (size_t)y * pitch + x;
        const float* coarse = flow + from * flow_buffer + blockIdx.z * 2 * plane;
        float* fine = flow + (1 - from) * flow_buffer + blockIdx.z * 2 * plane + at;
        int x0, x1, y0, y1;
        float wx, wy, u = 0.0f, v = 0.0f;
        if (h0 > 0) {
            bilinear_taps(x, scale_x, w0, corners, x0, x1, wx);
            bilinear_taps(y, scale_y, h0, corners, y0, y1, wy);
            u = gain * bilinear(coarse, pitch0, x0, x1, wx, y0, y1, wy);
            v = gain * bilinear(coarse + plane, pitch0, x0, x1, wx, y0, y1, wy);
        }
        fine[0] = u;
        fine[plane] = v;
        float* p = dual + dual_at * dual_buffer + blockIdx.z * 4 * plane + at;
        for (int i = 0; i < 4; ++i) p[i * plane] = 0.0f;
    }
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0 && is_last(state, gridDim.x * gridDim.y))
        state->flow = 1 - from;
}

// The four bicubic weights at fraction t between the second and the third tap.
__device__ __forceinline__ float4 cubic_weights(float t, float a)
{
    float s = 1.0f + t, r = 1.0f - t;
    float4 w;
    w.x = ((a * s - 5.0f * a) * s + 8.0f * a) * s - 4.0f * a;
    w.y = ((a + 2.0f) * t - (a + 3.0f)) * t * t + 1.0f;
    w.z = ((a + 2.0f) * r - (a + 3.0f)) * r * r + 1.0f;
    w.w = 1.0f - w.x - w.y - w.z;
    return w;
}

__device__ __forceinline__ void add_tap(float4& sum, float weight, float4 sample)
{
    sum.x += weight * sample.x;
    sum.y += weight * sample.y;
    sum.z += weight * sample.z;
}

__device__ __forceinline__ float4 four_taps(
    const float4* row, int c0, int c1, int c2, int c3, float4 w)
{
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    add_tap(sum, w.x, row[c0]);
    add_tap(sum, w.y, row[c1]);
    add_tap(sum, w.z, row[c2]);
    add_tap(sum, w.w, row[c3]);
    return sum;
}

// The data term around the present field: data (N, 3) planes of I1x, I1y at x + u and rho_c.
// Outside the frame is zero, or with `edge` the nearest pixel. Opens the warp in the pair's state,
// and in the first list, which then names every pair.
extern "C" __global__ void linearize(
    const float* images, long long frame_stride, const float4* samples, long long sample_stride,
    const int* frame_of, const float* flow, long long flow_buffer, long long plane,
    float* data, State* states, int* lists, int list_stride, int h, int w, int pitch,
    float cubic_a, int edge, int left, int rounds)
{
    int pair = blockIdx.z;
    State* state = states + pair;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0 && threadIdx.y == 0) {
        state->left = left;
        state->rounds = rounds;
        state->redo = 0;
        state->done = 0;
        state->count = 0;
        state->former = 0.0;
        entries(lists, list_stride, left == 0)[pair] = entry_of(state, pair);
        if (pair == 0) {
            for (int i = 0; i < 3; ++i) empty(lists + i * list_stride);
            lists[left == 0] = gridDim.z;
        }
    }
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    size_t at = (size_t)y * pitch + x;
    const float* uv = flow + state->flow * flow_buffer + pair * 2 * plane + at;
    float u = uv[0], v = uv[plane];
    // Further than 3 px outside, all taps have one value; a NaN becomes the lower end.
    float at_x = fminf(fmaxf((float)x + u, -3.0f), (float)(w + 2));
    float at_y = fminf(fmaxf((float)y + v, -3.0f), (float)(h + 2));
    float left_x = floorf(at_x), top_y = floorf(at_y);
    float4 wx = cubic_weights(at_x - left_x, cubic_a);
    float4 wy = cubic_weights(at_y - top_y, cubic_a);
    int column = (int)left_x - 1, line = (int)top_y - 1;
    int low = edge ? 0 : -BORDER;
    int right = edge ? w - 1 : w + BORDER, bottom = edge ? h - 1 : h + BORDER;
    int c0 = max(low, min(column, right)), c1 = max(low, min(column + 1, right));
    int c2 = max(low, min(column + 2, right)), c3 = max(low, min(column + 3, right));
    int stride = w + 2 * BORDER;
    const float4* sample = samples + frame_of[2 * pair + 1] * sample_stride
                           + (size_t)BORDER * stride + BORDER;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int i = 0; i < 4; ++i) {
        int row = max(low, min(line + i, bottom));
        float weight = i == 0 ? wy.x : i == 1 ? wy.y : i == 2 ? wy.z : wy.w;
        add_tap(sum, weight, four_taps(sample + (ptrdiff_t)row * stride, c0, c1, c2, c3, wx));
    }
    float* out = data + pair * 3 * plane + at;
    out[0] = sum.y;
    out[plane] = sum.z;
    out[2 * plane] = sum.x - sum.y * u - sum.z * v
                     - images[frame_of[2 * pair] * frame_stride + at];
}

// --- the 5 x 5 median ---

__device__ __forceinline__ void order(float& a, float& b)
{
    float low = fminf(a, b);
    b = fmaxf(a, b);
    a = low;
}

__device__ __forceinline__ void sort5(float* s)
{
    order(s[0], s[1]); order(s[3], s[4]); order(s[2], s[4]); order(s[2], s[3]); order(s[0], s[3]);
    order(s[0], s[2]); order(s[1], s[4]); order(s[1], s[3]); order(s[1], s[2]);
}

// Two sorted fives to a sorted ten (Batcher's odd-even merge).
__device__ __forceinline__ void merge5(const float* a, const float* b, float* s)
{
    float p0 = a[0], p1 = a[4], q0 = b[0], q1 = b[4], m0 = a[2], m1 = b[2];
    order(p0, q0); order(p1, q1); order(p1, q0);       // a0 a4 + b0 b4
    order(m0, m1);
    order(p1, m0); order(m1, q0);                      // the odd ones of both: p0 p1 m0 m1 q0 q1
    float e0 = a[1], e1 = a[3], f0 = b[1], f1 = b[3];
    order(e0, f0); order(e1, f1); order(e1, f0);       // the even ones: e0 e1 f0 f1
    order(e0, p1); order(e1, m0); order(f0, m1); order(f1, q0);
    s[0] = p0; s[1] = e0; s[2] = p1; s[3] = e1; s[4] = m0;
    s[5] = f0; s[6] = m1; s[7] = f1; s[8] = q0; s[9] = q1;
}

// The eighth to the thirteenth of the twenty values of four columns (two sorted tens); only these
// can be the thirteenth of twenty-five with a fifth column.
__device__ __forceinline__ void middle_six(const float* p, const float* q, float* r)
{
    float lo[10], hi[10];
    for (int i = 0; i < 10; ++i) {
        lo[i] = fminf(p[i], q[9 - i]);
        hi[i] = fmaxf(p[i], q[9 - i]);
    }
    float a = fmaxf(lo[0], lo[5]), b = fmaxf(lo[1], lo[6]), c = fmaxf(lo[2], lo[7]);
    float d = fmaxf(lo[3], lo[8]), e = fmaxf(lo[4], lo[9]);
    order(a, b); order(c, d);
    float low = fmaxf(a, c), middle = b, high = d;
    order(middle, high); order(low, middle);
    low = fmaxf(low, e);
    order(low, middle); order(middle, high);
    r[0] = low; r[1] = middle; r[2] = high;
    a = fminf(hi[0], hi[5]); b = fminf(hi[1], hi[6]); c = fminf(hi[2], hi[7]);
    d = fminf(hi[3], hi[8]); e = fminf(hi[4], hi[9]);
    order(a, b); order(c, d);
    high = fminf(b, d); low = a; middle = c;
    order(low, middle); order(middle, high);
    high = fminf(high, e);
    order(middle, high); order(low, middle);
    r[3] = low; r[4] = middle; r[5] = high;
}

// The smallest, over j, of max(j-th of the fifth column, r[13 - j]).
__device__ __forceinline__ float last_column(const float* c, const float* r)
{
    float m = r[5];
    for (int j = 0; j < 5; ++j) m = fminf(m, fmaxf(c[j], r[4 - j]));
    return m;
}

// The last of a pair's parts to end begins a round of `inner` iterations.
__device__ __forceinline__ void settle_round(
    State* states, int* next, int list_stride, int pair, int parts, int inner)
{
    State* state = states + pair;
    if (!is_last(state, parts)) return;
    state->flow ^= 1;
    state->left = inner;
    state->rounds -= 1;
    append(next, list_stride, entry_of(state, pair));
}

// A part of 64 x 16 px of u or v of one pair: where it is, and where the component's plane begins.
struct Part {
    int entry, x, y;
    size_t plane;
};

// The 5 x 5 median of u and v, edges repeated, for the pairs of list `turn`, which all wait for it;
// to the next they come as pairs at work. A thread makes four pixels of a row from eight columns
// that it sorts once; the pixels of the block's next part are brought meanwhile.
extern "C" __global__ void __launch_bounds__(256, 4) begin_round(
    float* flow, State* states, int* lists, int list_stride, int turn,
    long long flow_buffer, long long plane, int h, int w, int pitch,
    int columns_of_parts, int rows_of_parts, int inner)
{
    __shared__ float4 tiles[2][20][17];  // 16 + 4 rows of 64 + 4 px
    int* list = lists + turn * list_stride;
    int* next = lists + (turn + 1) % 3 * list_stride;
    if (blockIdx.x == 0 && threadIdx.x == 0) empty(lists + (turn + 2) % 3 * list_stride);
    int parts = 2 * columns_of_parts * rows_of_parts, units = parts * WAITING(list);
    Part part, coming_part;
    int settling = -1;  // the pair whose part was the last one
    int which = 0;  // the one of `tiles` in use
    for (int unit = blockIdx.x - gridDim.x; unit < units; unit += gridDim.x, which ^= 1) {
        bool works = unit >= 0;
        arrived();
        __syncthreads();
        int coming = unit + gridDim.x;
        if (coming < units) {
            int number = coming / parts, place = coming - number * parts;
            coming_part.entry = entries(list, list_stride, 1)[number];
            int component = place >= parts / 2;
            place -= component * parts / 2;
            coming_part.y = place / columns_of_parts;
            coming_part.x = (place - coming_part.y * columns_of_parts) * 64;
            coming_part.y *= 16;
            coming_part.plane = (2 * (coming_part.entry & 0xffff) + component) * plane;
            const float* source =
                flow + (coming_part.entry >> 20 & 1) * flow_buffer + coming_part.plane;
            for (int i = threadIdx.x; i < 20 * 68; i += 256) {
                int row = i / 68, column = i - row * 68;
                int x = max(0, min(coming_part.x + column - 2, w - 1));
                int y = max(0, min(coming_part.y + row - 2, h - 1));
                bring((float*)tiles[which ^ 1] + i, source + (size_t)y * pitch + x);
            }
        }
        if (threadIdx.x == 0 && settling >= 0)
            settle_round(states, next, list_stride, settling, parts, inner);
        if (works) {
            int quad = threadIdx.x & 15, row = threadIdx.x >> 4;
            float columns[8][5];
            for (int i = 0; i < 5; ++i) {
                float4 a = tiles[which][row + i][quad], b = tiles[which][row + i][quad + 1];
                columns[0][i] = a.x; columns[1][i] = a.y; columns[2][i] = a.z;
                columns[3][i] = a.w; columns[4][i] = b.x; columns[5][i] = b.y;
                columns[6][i] = b.z; columns[7][i] = b.w;
            }
            for (int i = 0; i < 8; ++i) sort5(columns[i]);
            float left[10], center[10], right[10], middle[6];
            merge5(columns[1], columns[2], left);
            merge5(columns[3], columns[4], center);
            merge5(columns[5], columns[6], right);
            float4 out;
            middle_six(left, center, middle);
            out.x = last_column(columns[0], middle);
            out.y = last_column(columns[5], middle);
            middle_six(center, right, middle);
            out.z = last_column(columns[2], middle);
            out.w = last_column(columns[7], middle);
            int x = part.x + 4 * quad, y = part.y + row;
            float* target = flow + (~part.entry >> 20 & 1) * flow_buffer + part.plane;
            if (x < w && y < h) *(float4*)(target + (size_t)y * pitch + x) = out;  // whole quads
            settling = part.entry & 0xffff;
        }
        part = coming_part;
    }
    __syncthreads();
    if (threadIdx.x == 0 && settling >= 0)
        settle_round(states, next, list_stride, settling, parts, inner);
}

// --- the iterations ---

__device__ __forceinline__ float add_lanes(float value)
{
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(FULL, value, step);
    return value;
}


// The end of a pass of n iterations, errors[k] being that of the k-th: the warp goes on, repeats a
// part, or ends. True if it goes on.
__device__ bool decide(
    State* state, int n, int px, const float* errors, float stop, int cuda_rule, int* finished)
{
    int ends = 0;
    if (state->redo) {
        state->redo = 0;
        ends = 1;
    } else {
        int stop_after = 0;
#pragma unroll
        for (int k = 0; k < HALO; ++k) {
            if (k >= n || stop_after) continue;
            if (!cuda_rule) {
                if (!(errors[k] > stop)) stop_after = k + 1;
            } else if (stop > 0.0f && ((state->count + k) & 1) && state->former < stop) {
                state->former = errors[k];
                if (!(errors[k] > stop)) stop_after = k + 1;
            } else {
                state->former -= stop;
            }
        }
        if (stop_after && stop_after < n) {
            state->redo = stop_after;
            return true;
        }
        state->left -= n;
        state->count += n;
        ends = stop_after || (state->left == 0 && state->rounds == 0);
    }
    state->work += (long long)n * px;
    state->flow ^= 1;
    state->dual ^= 1;
    if (ends) {
        state->done = 1;
        atomicAdd(finished, 1);
    }
    return !ends;
}

// What the host gives `iterate` once for a scale.
struct Fields {
    const float *flow, *dual, *data;
    long long flow_buffer, dual_buffer, plane;
    int h, w, pitch, columns;
};

// The nine planes of a warp's strip of a tile to its shared memory, [plane][row][64 px].
__device__ __forceinline__ void bring_strip(
    float4* to, const Fields& f, int entry, int tile, int warp, int lane)
{
    int tile_y = tile / f.columns, tile_x = tile - tile_y * f.columns, pair = entry & 0xffff;
    int part = lane & 15, x = tile_x * STEP + 4 * part;
    int y = tile_y * STEP + ROWS * warp + (lane >> 4);
    if (x >= f.w) return;
    long long at = (long long)y * f.pitch + x;
    const float* from[3] = {
        f.data + 3 * pair * f.plane + at,
        f.flow + (entry >> 20 & 1) * f.flow_buffer + 2 * pair * f.plane + at,
        f.dual + (entry >> 21 & 1) * f.dual_buffer + 4 * pair * f.plane + at};
    to += 16 * (lane >> 4) + part;
#pragma unroll
    for (int i = 0; i < 9; ++i) {
        const float* source = i < 3 ? from[0] + i * f.plane
                            : i < 5 ? from[1] + (i - 3) * f.plane : from[2] + (i - 5) * f.plane;
#pragma unroll
        for (int r = 0; r < ROWS; r += 2)  // two rows at a time
            if (y + r < f.h) bring(to + (i * ROWS + r) * 16, source + (size_t)r * f.pitch);
    }
}

// Up to HALO iterations of every pair of list `turn` that has some left; pairs that go on are put
// in the next list. flow: two buffers of (N, 2) planes, dual: two of (N, 4). partial (N, tiles,
// HALO): the error of each tile and iteration. staged: STAGING_BYTES of shared memory are given,
// to which a tile's planes are brought while the tile before it is worked on.
extern "C" __global__ void __launch_bounds__(32 * WARPS) iterate(
    float* flow, float* dual, const float* data, State* states, float* partial, int* finished,
    int* lists, int list_stride, int turn,
    long long flow_buffer, long long dual_buffer, long long plane, int h, int w, int pitch,
    int columns, int rows, float theta, float limit, float taut, float stop, int cuda_rule,
    int staged)
{
    // Between strips k - 1 and k, a cell of each lane: u, v of the lower one's top row for the
    // upper one, or p12, p22 of the upper one's bottom row for the lower one; who reads it writes
    // it next.
    __shared__ float4 cells[(WARPS + 1) * 32];
    __shared__ float by_lane[HALO][WARPS * 32];  // errors of a tile's strips
    __shared__ float errors[HALO][WARPS];
    DYNAMIC_SHARED(float4, staging);
    const Fields fields = {
        flow, dual, data, flow_buffer, dual_buffer, plane, h, w, pitch, columns};
    int lane = threadIdx.x & 31, warp = UNIFORM(threadIdx.x >> 5);
#define ABOVE cells[threadIdx.x]
#define BELOW cells[threadIdx.x + 32]
#define BOTTOM make_float4(p12[ROWS - 1].x, p12[ROWS - 1].y, p22[ROWS - 1].x, p22[ROWS - 1].y)
    float4* stage = staging + warp * (9 * ROWS * 16);
    __shared__ int ahead;  // number of the tile after the next
    int* list = lists + turn * list_stride;
    int* next = lists + (turn + 1) % 3 * list_stride;
    const int* at_work = entries(list, list_stride, 0);
    if (blockIdx.x == 0) {
        if (threadIdx.x == 0) empty(lists + (turn + 2) % 3 * list_stride);
        for (int i = threadIdx.x; i < WAITING(list); i += 32 * WARPS)
            append(next, list_stride, entries(list, list_stride, 1)[i]);
    }
    if (warp == 0) ABOVE = make_float4(0.0f, 0.0f, 0.0f, 0.0f);  // it stays zero
    if (warp == WARPS - 1) BELOW = make_float4(0.0f, 0.0f, 0.0f, 0.0f);  // later anything finite
    int tiles = columns * rows, units = tiles * WORKING(list);
    int unit = blockIdx.x, coming = unit + gridDim.x, settling = 0;
    if (unit >= units) return;
    int entry = UNIFORM(at_work[unit / tiles]);
    if (staged) bring_strip(stage, fields, entry, unit % tiles, warp, lane);
    for (;;) {
        bool works = unit < units;
        int n = ITERATIONS(entry), pair = entry & 0xffff, following = 0, taken = 0;
        if (works && threadIdx.x == 0) taken = 2 * gridDim.x + atomicAdd(&TAKEN(list), 1);
        if (coming < units) following = UNIFORM(at_work[coming / tiles]);
        int tile = unit % tiles, tile_y = tile / columns, tile_x = tile - tile_y * columns;
        int x = tile_x * STEP + 2 * lane, y0 = tile_y * STEP + ROWS * warp;
        // The pixels that this thread writes and whose error it counts.
        int x_low = tile_x == 0 ? 0 : tile_x * STEP + HALO;
        int x_high = tile_x == columns - 1 ? w : (tile_x + 1) * STEP + HALO;
        int y_low = tile_y == 0 ? 0 : tile_y * STEP + HALO;
        int y_high = tile_y == rows - 1 ? h : (tile_y + 1) * STEP + HALO;
        bool owned = x >= x_low && x < x_high;
        size_t at = (size_t)y0 * pitch + x;
        float2 u[ROWS], v[ROWS], p11[ROWS], p12[ROWS], p21[ROWS], p22[ROWS];

        if (works) {
            float2 ix[ROWS], iy[ROWS], rho_c[ROWS], inverse[ROWS];
            const float2 zero = make_float2(0.0f, 0.0f);
#define TAKE(PLANE) \
            _Pragma("unroll") \
            for (int r = 0; r < ROWS; ++r) { \
                bool inside = x < w && y0 + r < h; \
                ix[r] = inside ? PLANE(data_in, 0, 0) : zero; \
                iy[r] = inside ? PLANE(data_in, 1, 1) : zero; \
                rho_c[r] = inside ? PLANE(data_in, 2, 2) : zero; \
                u[r] = inside ? PLANE(flow_in, 0, 3) : zero; \
                v[r] = inside ? PLANE(flow_in, 1, 4) : zero; \
                p11[r] = inside ? PLANE(dual_in, 0, 5) : zero; \
                p12[r] = inside ? PLANE(dual_in, 1, 6) : zero; \
                p21[r] = inside ? PLANE(dual_in, 2, 7) : zero; \
                p22[r] = inside ? PLANE(dual_in, 3, 8) : zero; \
            }
#define STAGED(from, i, all) ((const float2*)stage)[((all) * ROWS + r) * 32 + lane]
#define DIRECT(from, i, all) *(const float2*)((from) + (i) * plane + (size_t)r * pitch)
            if (staged) {
                arrived();
                __syncwarp();
                TAKE(STAGED)
                __syncwarp();
                if (following) bring_strip(stage, fields, following, coming % tiles, warp, lane);
            } else {
                const float* data_in = data + 3 * pair * plane + at;
                const float* flow_in =
                    flow + (entry >> 20 & 1) * flow_buffer + 2 * pair * plane + at;
                const float* dual_in =
                    dual + (entry >> 21 & 1) * dual_buffer + 4 * pair * plane + at;
                TAKE(DIRECT)
            }
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                if (x + 1 >= w) {  // beside the frame may lie anything
                    u[r].y = v[r].y = p11[r].y = p12[r].y = p21[r].y = p22[r].y = 0.0f;
                    ix[r].y = iy[r].y = rho_c[r].y = 0.0f;
                }
                float gx = ix[r].x * ix[r].x + iy[r].x * iy[r].x;
                float gy = ix[r].y * ix[r].y + iy[r].y * iy[r].y;
                inverse[r].x = -1.0f / fmaxf(gx, 1.1920929e-07f);
                inverse[r].y = -1.0f / fmaxf(gy, 1.1920929e-07f);
            }

            // The factors that make the edges of the frame: they are 0 there.
            float keep_left = lane > 0 ? 1.0f : 0.0f;  // no dual field left of the frame
            float theta_y = x + 1 < w ? theta : 0.0f;  // the column beside an odd width stays 0
            float taut_x = x < w - 1 ? taut : 0.0f;  // forward differences: 0 in the last column
            float taut_y = x + 1 < w - 1 ? taut : 0.0f;
            float counted[ROWS];  // a factor: a multiply-add by 1 rounds as an addition does
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
                counted[r] = y0 + r >= y_low && y0 + r < y_high ? 1.0f : 0.0f;

            BELOW = BOTTOM;
            if (threadIdx.x == 0) ahead = taken;
            __syncthreads();

            // A strip below the frame goes along, all zero, so that all warps come to the same
            // barriers: a branch around it makes the loop 71 instructions longer.
#pragma unroll 1
            for (int k = 0; k < n; ++k) {
                float error = 0.0f;
                float4 above = ABOVE;
                float2 above12 = make_float2(above.x, above.y);
                float2 above22 = make_float2(above.z, above.w);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    float left11 = __shfl_up_sync(FULL, p11[r].y, 1);
                    float left21 = __shfl_up_sync(FULL, p21[r].y, 1);
                    float2 div_u, div_v;
                    div_u.x = (p11[r].x - keep_left * left11) + (p12[r].x - above12.x);
                    div_u.y = (p11[r].y - p11[r].x) + (p12[r].y - above12.y);
                    div_v.x = (p21[r].x - keep_left * left21) + (p22[r].x - above22.x);
                    div_v.y = (p21[r].y - p21[r].x) + (p22[r].y - above22.y);
                    above12 = p12[r];
                    above22 = p22[r];
                    float rho_x = rho_c[r].x + ix[r].x * u[r].x + iy[r].x * v[r].x;
                    float rho_y = rho_c[r].y + ix[r].y * u[r].y + iy[r].y * v[r].y;
                    float step_x = fmaxf(-limit, fminf(limit, rho_x * inverse[r].x));
                    float step_y = fmaxf(-limit, fminf(limit, rho_y * inverse[r].y));
                    float du_x = step_x * ix[r].x + theta * div_u.x;
                    float du_y = step_y * ix[r].y + theta_y * div_u.y;
                    float dv_x = step_x * iy[r].x + theta * div_v.x;
                    float dv_y = step_y * iy[r].y + theta_y * div_v.y;
                    u[r].x += du_x;
                    u[r].y += du_y;
                    v[r].x += dv_x;
                    v[r].y += dv_y;
                    float change = du_x * du_x + dv_x * dv_x + (du_y * du_y + dv_y * dv_y);
                    error += change * counted[r];
                }
                if (warp > 0) ABOVE = make_float4(u[0].x, u[0].y, v[0].x, v[0].y);
                by_lane[k][threadIdx.x] = owned ? error : 0.0f;
                __syncthreads();

                float4 below = BELOW;
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    bool inner = r < ROWS - 1;
                    float2 next_u = make_float2(below.x, below.y);
                    if (inner) next_u = u[inner ? r + 1 : r];
                    float2 next_v = make_float2(below.z, below.w);
                    if (inner) next_v = v[inner ? r + 1 : r];
                    float right_u = __shfl_down_sync(FULL, u[r].x, 1);
                    float right_v = __shfl_down_sync(FULL, v[r].x, 1);
                    float down = y0 + r < h - 1 ? taut : 0.0f;  // 0 in the last row
#define DUAL_STEP(c, taut_c, u_right, v_right) { \
            float ux = taut_c * (u_right - u[r].c), uy = down * (next_u.c - u[r].c); \
            float vx = taut_c * (v_right - v[r].c), vy = down * (next_v.c - v[r].c); \
            float nu = 1.0f + sqrtf(ux * ux + uy * uy), nv = 1.0f + sqrtf(vx * vx + vy * vy); \
            float shrink = 1.0f / (nu * nv), shrink_u = shrink * nv, shrink_v = shrink * nu; \
            p11[r].c = (p11[r].c + ux) * shrink_u; \
            p12[r].c = (p12[r].c + uy) * shrink_u; \
            p21[r].c = (p21[r].c + vx) * shrink_v; \
            p22[r].c = (p22[r].c + vy) * shrink_v; }
                    DUAL_STEP(x, taut_x, u[r].y, v[r].y)
                    DUAL_STEP(y, taut_y, right_u, right_v)
                }
                BELOW = BOTTOM;
                __syncthreads();
            }
        }

        // The tile before was written long ago, so its fence has little to wait for. After the
        // pair's last tile, the first warp adds up the errors of the tiles.
        if (settling && warp == 0) {
            State* state = states + (settling & 0xffff);
            int last = lane == 0 && is_last(state, tiles);
            if (UNIFORM(last)) {
                const float* parts = partial + (size_t)(settling & 0xffff) * tiles * HALO;
                float sums[HALO];
#pragma unroll
                for (int k = 0; k < HALO; ++k) {
                    sums[k] = 0.0f;
#pragma unroll 1
                    for (int i = lane; i < tiles; i += 32) sums[k] += __ldcg(&parts[i * HALO + k]);
                    sums[k] = add_lanes(sums[k]);
                }
                if (lane == 0) {
                    int left = ITERATIONS(settling);
                    if (decide(state, left, h * w, sums, stop, cuda_rule, finished))
                        append(next, list_stride, entry_of(state, settling & 0xffff));
                }
            }
        }
        if (!works) return;

        float* flow_out = flow + (~entry >> 20 & 1) * flow_buffer + 2 * pair * plane + at;
        float* dual_out = dual + (~entry >> 21 & 1) * dual_buffer + 4 * pair * plane + at;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            if (!owned || y0 + r < y_low || y0 + r >= y_high) continue;
#define STORE(to, i, value) *(float2*)((to) + (i) * plane + (size_t)r * pitch) = value;
            STORE(flow_out, 0, u[r])
            STORE(flow_out, 1, v[r])
            STORE(dual_out, 0, p11[r])
            STORE(dual_out, 1, p12[r])
            STORE(dual_out, 2, p21[r])
            STORE(dual_out, 3, p22[r])
        }

        // The sums over lanes of up to eight values at once, each in the order of a butterfly:
        // lanes with bit 4 set take the upper four on, of these lanes with bit 3 set the upper
        // two, and so on.
        float some[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) some[k] = k < n ? by_lane[k < HALO ? k : 0][threadIdx.x] : 0.0f;
#pragma unroll
        for (int half = 4, step = 16; half > 0; half >>= 1, step >>= 1) {
            bool upper = lane & step;
#pragma unroll
            for (int k = 0; k < half; ++k) {
                float given = upper ? some[k] : some[k + half];
                float kept = upper ? some[k + half] : some[k];
                some[k] = kept + __shfl_xor_sync(FULL, given, step);
            }
        }
        some[0] += __shfl_xor_sync(FULL, some[0], 2);
        some[0] += __shfl_xor_sync(FULL, some[0], 1);
        int which = lane >> 2;  // bits 4, 3, 2 of the lane: half 4, 2, 1
        if ((lane & 3) == 0 && which < HALO) errors[which][warp] = some[0];
        int tile_ahead = ahead;
        __syncthreads();
        if (warp == 0) {
#pragma unroll
            for (int k = 0; k < HALO; ++k) {
                float sum = k < n && lane < WARPS ? errors[k][lane < WARPS ? lane : 0] : 0.0f;
                sum = add_lanes(sum);
                if (lane == 0) partial[((size_t)pair * tiles + tile) * HALO + k] = sum;
            }
        }
        settling = entry;
        unit = coming;
        entry = following;
        coming = tile_ahead;
    }
}
"""
)
