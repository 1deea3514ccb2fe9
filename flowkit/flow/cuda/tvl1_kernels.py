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

The pairs still at work stand in a list on the device, which every pass makes for the next (in any
order: a pair depends on no other). As many blocks as the GPU has multiprocessors go through their
tiles, so pairs that have ended cost nothing. Three lists take turns: one is read, one is written,
one is emptied.
"""

from __future__ import annotations

TILE = 64  # px: side of a tile
HALO = 6  # iterations a pass: divides OpenCV's 30 between two medians
STEP = TILE - 2 * HALO  # px from tile to tile
THREADS = 512
BORDER = 8  # zeros around the sampled image: the taps of a clamped position reach 5 px outside
STATE_INTS = 12  # size of struct State in 4-byte words

CONSTANTS = f"""
#define HALO {HALO}
#define STEP {STEP}
#define BORDER {BORDER}
"""

SOURCE = (
    CONSTANTS
    + r"""
#define ROWS 4
#define WARPS 16

struct State {      // of one pair
    int flow;       // which of the two buffers holds u and v
    int dual;       // and which the dual field
    int left;       // iterations up to the next median
    int rounds;     // medians still to come in this warp
    int redo;       // iterations to repeat in the next pass; 0: none
    int done;       // the warp has ended
    int ticket;     // blocks of the running kernel that have finished
    int count;      // iterations of this warp
    double former;  // OpenCV CUDA's error of the last test, less the stop value each iteration
    long long work;  // pixels times iterations, of all warps and scales
};

// True in the last block to come here of a kernel that has `blocks` of them for this pair.
__device__ bool is_last_block(State* state, int blocks)
{
    __shared__ int last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0)
        last = atomicAdd(&state->ticket, 1) == blocks - 1;
    __syncthreads();
    bool answer = last;
    __threadfence();
    return answer;
}

// A pair at work, as a list names it: its number, the iterations of its next pass (0: it waits for
// a median), and the buffers that hold its fields.
__device__ __forceinline__ int entry_of(const State* state, int pair)
{
    int n = state->redo ? state->redo : min(HALO, state->left);
    return pair | n << 16 | state->flow << 20 | state->dual << 21;
}

// A list: how many entries it has, then these.
__device__ __forceinline__ void append(int* list, int entry)
{
    list[1 + atomicAdd(list, 1)] = entry;
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

// u and v from the next coarser scale (h0 = 0: none, zero), and a dual field of zeros.
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
    if (is_last_block(state, gridDim.x * gridDim.y) && threadIdx.x == 0 && threadIdx.y == 0) {
        state->flow = 1 - from;
        state->ticket = 0;
    }
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
        lists[1 + pair] = entry_of(state, pair);
        if (pair == 0) {
            lists[0] = gridDim.z;
            lists[list_stride] = lists[2 * list_stride] = 0;
        }
    }
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= w || y >= h) return;
    size_t at = (size_t)y * pitch + x;
    const float* uv = flow + state->flow * flow_buffer + pair * 2 * plane + at;
    float u = uv[0], v = uv[plane];
    // further than 3 px outside all taps are alike; a NaN becomes the lower end
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
    order(p1, m0); order(m1, q0);                      // p0 p1 m0 m1 q0 q1: the odd ones of both
    float e0 = a[1], e1 = a[3], f0 = b[1], f1 = b[3];
    order(e0, f0); order(e1, f1); order(e1, f0);       // e0 e1 f0 f1: the even ones
    order(e0, p1); order(e1, m0); order(f0, m1); order(f1, q0);
    s[0] = p0; s[1] = e0; s[2] = p1; s[3] = e1; s[4] = m0;
    s[5] = f0; s[6] = m1; s[7] = f1; s[8] = q0; s[9] = q1;
}

// Of the twenty values of four columns (two sorted tens) the eighth to the thirteenth; only these
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

// The 5 x 5 median of u and v, edges repeated, for the pairs of a list, which all begin a round of
// iterations. A thread makes four pixels of a row from eight columns that it sorts once.
extern "C" __global__ void __launch_bounds__(256) begin_round(
    float* flow, State* states, int* list, long long flow_buffer, long long plane,
    int h, int w, int pitch, int columns_of_blocks, int rows_of_blocks, int inner)
{
    __shared__ float4 tile[20][17];  // 16 + 4 rows of 64 + 4 px
    float* cells = (float*)tile;
    int blocks = columns_of_blocks * rows_of_blocks, units = 2 * blocks * list[0];
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        int number = unit / (2 * blocks), part = unit - number * 2 * blocks;
        int component = part >= blocks;
        part -= component * blocks;
        int entry = list[1 + number], pair = entry & 0xffff, from = entry >> 20 & 1;
        size_t offset = (2 * pair + component) * plane;
        const float* source = flow + from * flow_buffer + offset;
        float* target = flow + (1 - from) * flow_buffer + offset;
        int y0 = part / columns_of_blocks;
        int x0 = (part - y0 * columns_of_blocks) * 64;
        y0 *= 16;
        for (int i = threadIdx.x; i < 20 * 68; i += 256) {
            int row = i / 68, column = i - row * 68;
            int x = max(0, min(x0 + column - 2, w - 1)), y = max(0, min(y0 + row - 2, h - 1));
            cells[i] = source[(size_t)y * pitch + x];
        }
        __syncthreads();
        int quad = threadIdx.x & 15, row = threadIdx.x >> 4;
        float columns[8][5];
        for (int i = 0; i < 5; ++i) {
            float4 a = tile[row + i][quad], b = tile[row + i][quad + 1];
            columns[0][i] = a.x; columns[1][i] = a.y; columns[2][i] = a.z; columns[3][i] = a.w;
            columns[4][i] = b.x; columns[5][i] = b.y; columns[6][i] = b.z; columns[7][i] = b.w;
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
        int x = x0 + 4 * quad, y = y0 + row;
        if (x < w && y < h) *(float4*)(target + (size_t)y * pitch + x) = out;  // whole quads
        State* state = states + pair;
        if (is_last_block(state, 2 * blocks) && threadIdx.x == 0) {
            state->flow = 1 - from;
            state->left = inner;
            state->rounds -= 1;
            state->ticket = 0;
            list[1 + number] = entry_of(state, pair);
        }
    }
}

// --- the iterations ---

// After a pass of n iterations, errors[k][0] that of the k-th: go on, repeat a part, or end. True
// if the warp goes on.
__device__ bool decide(
    State* state, int n, int px, float (*errors)[WARPS], float stop, int cuda_rule, int* finished)
{
    int ends = 0;
    if (state->redo) {
        state->redo = 0;
        ends = 1;
    } else {
        int stop_after = 0;
        for (int k = 0; k < n && !stop_after; ++k) {
            if (!cuda_rule) {
                if (!(errors[k][0] > stop)) stop_after = k + 1;
            } else if (stop > 0.0f && ((state->count + k) & 1) && state->former < stop) {
                state->former = errors[k][0];
                if (!(errors[k][0] > stop)) stop_after = k + 1;
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

// Up to HALO iterations of every pair of list `turn` that has some left; the pairs that go on are
// the next list. flow: two buffers of (N, 2) planes, dual: two of (N, 4). partial (N, tiles, HALO):
// the error of each tile and iteration.
extern "C" __global__ void __launch_bounds__(512, 1) iterate(
    float* flow, float* dual, const float* data, State* states, float* partial, int* finished,
    int* lists, int list_stride, int turn,
    long long flow_buffer, long long dual_buffer, long long plane, int h, int w, int pitch,
    int columns, int rows, float theta, float limit, float taut, float stop, int cuda_rule)
{
    __shared__ float4 below_u[WARPS + 1][32];  // u, v of a strip's top row, for the strip above it
    __shared__ float4 above_p[WARPS + 1][32];  // p12, p22 of its bottom row, for the strip below
    __shared__ float errors[HALO][WARPS];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int* list = lists + turn * list_stride;
    int* next = lists + (turn + 1) % 3 * list_stride;
    if (blockIdx.x == 0 && threadIdx.x == 0) lists[(turn + 2) % 3 * list_stride] = 0;
    int tiles = columns * rows, units = tiles * list[0];
    for (int unit = blockIdx.x; unit < units; unit += gridDim.x) {
        int number = unit / tiles, tile = unit - number * tiles, entry = list[1 + number];
        int pair = entry & 0xffff, n = entry >> 16 & 15;
        int flow_at = entry >> 20 & 1, dual_at = entry >> 21 & 1;
        if (n == 0) {  // waits for the next round
            if (tile == 0 && threadIdx.x == 0) append(next, entry);
            continue;
        }
        int tile_x = tile % columns, tile_y = tile / columns;
        int x = tile_x * STEP + 2 * lane, y0 = tile_y * STEP + ROWS * warp;
        size_t at = (size_t)y0 * pitch + x;
        size_t flow_pair = pair * 2 * plane + at, dual_pair = pair * 4 * plane + at;
        const float* flow_in = flow + flow_at * flow_buffer + flow_pair;
        const float* dual_in = dual + dual_at * dual_buffer + dual_pair;
        const float* data_in = data + pair * 3 * plane + at;

        float2 u[ROWS], v[ROWS], p11[ROWS], p12[ROWS], p21[ROWS], p22[ROWS];
        float2 ix[ROWS], iy[ROWS], rho_c[ROWS], inverse[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            bool inside = x < w && y0 + r < h, both = inside && x + 1 < w;
            const float2 zero = make_float2(0.0f, 0.0f);
#define LOAD(from, i) \
        (inside ? *(const float2*)((from) + (i) * plane + (size_t)r * pitch) : zero)
            u[r] = LOAD(flow_in, 0);
            v[r] = LOAD(flow_in, 1);
            p11[r] = LOAD(dual_in, 0);
            p12[r] = LOAD(dual_in, 1);
            p21[r] = LOAD(dual_in, 2);
            p22[r] = LOAD(dual_in, 3);
            ix[r] = LOAD(data_in, 0);
            iy[r] = LOAD(data_in, 1);
            rho_c[r] = LOAD(data_in, 2);
            if (!both) {  // what lies beside the frame may be anything
                u[r].y = v[r].y = p11[r].y = p12[r].y = p21[r].y = p22[r].y = 0.0f;
                ix[r].y = iy[r].y = rho_c[r].y = 0.0f;
            }
            inverse[r].x = -1.0f / fmaxf(ix[r].x * ix[r].x + iy[r].x * iy[r].x, 1.1920929e-07f);
            inverse[r].y = -1.0f / fmaxf(ix[r].y * ix[r].y + iy[r].y * iy[r].y, 1.1920929e-07f);
        }

        // What makes the edges of the frame: factors that are 0 there.
        float keep_left = lane > 0 ? 1.0f : 0.0f;  // no dual field left of the frame
        float theta_y = x + 1 < w ? theta : 0.0f;  // the column beside an odd width stays 0
        float taut_x = x < w - 1 ? taut : 0.0f;  // forward differences: 0 in the last column
        float taut_y = x + 1 < w - 1 ? taut : 0.0f;
        // What this thread writes and whose error it counts.
        int x_low = tile_x == 0 ? 0 : tile_x * STEP + HALO;
        int x_high = tile_x == columns - 1 ? w : (tile_x + 1) * STEP + HALO;
        int y_low = tile_y == 0 ? 0 : tile_y * STEP + HALO;
        int y_high = tile_y == rows - 1 ? h : (tile_y + 1) * STEP + HALO;
        bool owned = x >= x_low && x < x_high;

        if (warp == 0) {
            above_p[0][lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            below_u[WARPS][lane] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        above_p[warp + 1][lane] =
            make_float4(p12[ROWS - 1].x, p12[ROWS - 1].y, p22[ROWS - 1].x, p22[ROWS - 1].y);
        __syncthreads();

#pragma unroll 1
        for (int k = 0; k < n; ++k) {
            float4 above = above_p[warp][lane];
            float2 above12 = make_float2(above.x, above.y), above22 = make_float2(above.z, above.w);
            float error = 0.0f;
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
                if (y0 + r >= y_low && y0 + r < y_high) error += change;
            }
            below_u[warp][lane] = make_float4(u[0].x, u[0].y, v[0].x, v[0].y);
            error = owned ? error : 0.0f;
#pragma unroll
            for (int step = 16; step > 0; step >>= 1) error += __shfl_xor_sync(FULL, error, step);
            if (lane == 0) errors[k][warp] = error;
            __syncthreads();

            float4 below = below_u[warp + 1][lane];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                bool inner = r < ROWS - 1;
                float2 next_u = inner ? u[inner ? r + 1 : r] : make_float2(below.x, below.y);
                float2 next_v = inner ? v[inner ? r + 1 : r] : make_float2(below.z, below.w);
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
            above_p[warp + 1][lane] =
                make_float4(p12[ROWS - 1].x, p12[ROWS - 1].y, p22[ROWS - 1].x, p22[ROWS - 1].y);
            __syncthreads();
        }

        float* flow_out = flow + (1 - flow_at) * flow_buffer + flow_pair;
        float* dual_out = dual + (1 - dual_at) * dual_buffer + dual_pair;
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

        // Warp k adds up iteration k, first over the strips of the tile, then over the tiles.
        float sum = warp < n && lane < WARPS ? errors[warp < HALO ? warp : 0][lane] : 0.0f;
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(FULL, sum, step);
        if (warp < n && lane == 0) partial[((size_t)pair * tiles + tile) * HALO + warp] = sum;
        if (!is_last_block(states + pair, tiles)) continue;
        sum = 0.0f;
        if (warp < n)
            for (int i = lane; i < tiles; i += 32)
                sum += __ldcg(&partial[((size_t)pair * tiles + i) * HALO + warp]);
        for (int step = 16; step > 0; step >>= 1) sum += __shfl_xor_sync(FULL, sum, step);
        if (warp < n && lane == 0) errors[warp][0] = sum;
        __syncthreads();
        if (threadIdx.x == 0) {
            State* state = states + pair;
            state->ticket = 0;
            if (decide(state, n, h * w, errors, stop, cuda_rule, finished))
                append(next, entry_of(state, pair));
        }
    }
}
"""
)
