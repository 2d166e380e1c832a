// The elementwise passes of the layered engine, one kernel for what would be several of LibTorch's.
//
// Compiled on the machine that runs them (NVRTC), so no CUDA headers: bfloat16 is its bits. All arithmetic is float32; sums
// over blocks are written apart and added up afterwards in one order, so the same numbers give the same bits. Rows are
// contiguous and begin at multiples of 16 bytes. mod.rs says what each kernel computes, and gives it its arguments.

typedef unsigned short bf16;

struct alignas(16) Eight {
  bf16 x[8];
};

__device__ __forceinline__ float wide(bf16 x) {
  return __uint_as_float(static_cast<unsigned>(x) << 16);
}

__device__ __forceinline__ bool is_nan(unsigned bits) {
  return (bits & 0x7fffffffu) > 0x7f800000u;
}

// To the nearest, ties to even.
__device__ __forceinline__ bf16 narrow(float x) {
  const unsigned bits = __float_as_uint(x);
  if (is_nan(bits)) return 0x7fff;
  return static_cast<bf16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// Up or down at random, right on average: `random` is uniform in 16 bits.
__device__ __forceinline__ bf16 narrow(float x, unsigned random) {
  const unsigned bits = __float_as_uint(x);
  if (is_nan(bits)) return 0x7fff;
  // What is not finite has no lower half to carry from.
  return static_cast<bf16>((bits + ((bits & 0x7f800000u) == 0x7f800000u ? 0u : random)) >> 16);
}

// SplitMix64's finalizer (Steele et al. 2014).
__device__ __forceinline__ unsigned long long mix(unsigned long long z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

__device__ __forceinline__ float of_warp(float x) {
  for (int other = 16; other > 0; other /= 2) x += __shfl_xor_sync(0xffffffffu, x, other);
  return x;
}

// The sum over the block, for every thread. `scratch`: 32 floats of shared memory.
__device__ __forceinline__ float of_block(float x, float* scratch) {
  x = of_warp(x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += scratch[warp];
  return sum;
}

// ---- Root mean square norm, backward. 256 threads a block, which takes every gridDim.x-th row; CHUNKS eights a thread.

template <int CHUNKS>
__device__ __forceinline__ void rms_norm_backward(
    bf16* dx, float* d_weight, const bf16* dy, const bf16* x, const bf16* weight, long long rows,
    int columns, float eps) {
  __shared__ float scratch[2][32];
  const int eights = columns / 8;
  float w[CHUNKS][8], dw[CHUNKS][8];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = threadIdx.x + c * 256;
    Eight e = {};
    if (at < eights) e = reinterpret_cast<const Eight*>(weight)[at];
#pragma unroll
    for (int i = 0; i < 8; ++i) w[c][i] = wide(e.x[i]), dw[c][i] = 0.0f;
  }
  for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
    const auto* x_row = reinterpret_cast<const Eight*>(x + row * columns);
    const auto* dy_row = reinterpret_cast<const Eight*>(dy + row * columns);
    auto* dx_row = reinterpret_cast<Eight*>(dx + row * columns);
    Eight xs[CHUNKS], dys[CHUNKS];
    float square = 0.0f, along = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int at = threadIdx.x + c * 256;
      xs[c] = {}, dys[c] = {};
      if (at < eights) xs[c] = x_row[at], dys[c] = dy_row[at];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float v = wide(xs[c].x[i]);
        square += v * v;
        along += v * wide(dys[c].x[i]) * w[c][i];
      }
    }
    square = of_block(square, scratch[0]);
    along = of_block(along, scratch[1]);
    const float r = rsqrtf(square / columns + eps);
    const float share = along * r * r / columns;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int at = threadIdx.x + c * 256;
      if (at >= eights) continue;
      Eight out = dx_row[at];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float v = wide(xs[c].x[i]), d = wide(dys[c].x[i]);
        dw[c][i] += d * v * r;
        out.x[i] = narrow(wide(out.x[i]) + r * (d * w[c][i] - v * share));
      }
      dx_row[at] = out;
    }
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int at = threadIdx.x + c * 256;
    if (at >= eights) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i) d_weight[static_cast<long long>(blockIdx.x) * columns + at * 8 + i] = dw[c][i];
  }
}

#define RMS_NORM_BACKWARD(CHUNKS)                                                                \
  extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_##CHUNKS(                  \
      bf16* dx, float* d_weight, const bf16* dy, const bf16* x, const bf16* weight,              \
      long long rows, int columns, float eps) {                                                  \
    rms_norm_backward<CHUNKS>(dx, d_weight, dy, x, weight, rows, columns, eps);                  \
  }
RMS_NORM_BACKWARD(1)
RMS_NORM_BACKWARD(2)
RMS_NORM_BACKWARD(4)

// ---- Rotary position embedding. A thread turns two neighbouring frequencies of one head of one position.

__device__ __forceinline__ void turn(
    const bf16* from, bf16* to, const float* cos, const float* sin, int half, int i, float sign) {
  const auto first = *reinterpret_cast<const ushort2*>(from + i);
  const auto second = *reinterpret_cast<const ushort2*>(from + half + i);
  const float c0 = cos[i], c1 = cos[i + 1], s0 = sign * sin[i], s1 = sign * sin[i + 1];
  const float a0 = wide(first.x), a1 = wide(first.y), b0 = wide(second.x), b1 = wide(second.y);
  *reinterpret_cast<ushort2*>(to + i) =
      make_ushort2(narrow(a0 * c0 - b0 * s0), narrow(a1 * c1 - b1 * s1));
  *reinterpret_cast<ushort2*>(to + half + i) =
      make_ushort2(narrow(b0 * c0 + a0 * s0), narrow(b1 * c1 + a1 * s1));
}

// The first `heads` heads of every row of x, in place.
extern "C" __global__ void rotate(
    bf16* x, const float* cos, const float* sin, long long rows, int heads, int half,
    long long row_stride) {
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pairs = half / 2;
  const long long row = at / (static_cast<long long>(pairs) * heads);
  if (row >= rows) return;
  const int head = static_cast<int>(at / pairs % heads), i = static_cast<int>(at % pairs) * 2;
  bf16* head_row = x + row * row_stride + static_cast<long long>(head) * 2 * half;
  turn(head_row, head_row, cos + row * half, sin + row * half, half, i, 1.0f);
}

// The heads of q and k turned back and those of v as they are, side by side in `to`.
extern "C" __global__ void unrotate(
    bf16* to, const bf16* q, const bf16* k, const bf16* v, const float* cos, const float* sin,
    long long rows, int num_heads, int num_key_value_heads, int half, long long q_row, long long q_head,
    long long k_row, long long k_head, long long v_row, long long v_head) {
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int pairs = half / 2, heads = num_heads + 2 * num_key_value_heads;
  const long long row = at / (static_cast<long long>(pairs) * heads);
  if (row >= rows) return;
  const int head = static_cast<int>(at / pairs % heads), i = static_cast<int>(at % pairs) * 2;
  bf16* out = to + (row * heads + head) * 2 * half;
  const int key = head - num_heads, value = key - num_key_value_heads;
  if (value >= 0) {
    const bf16* from = v + row * v_row + value * v_head;
    *reinterpret_cast<ushort2*>(out + i) = *reinterpret_cast<const ushort2*>(from + i);
    *reinterpret_cast<ushort2*>(out + half + i) = *reinterpret_cast<const ushort2*>(from + half + i);
    return;
  }
  const bf16* from = key >= 0 ? k + row * k_row + key * k_head : q + row * q_row + head * q_head;
  turn(from, out, cos + row * half, sin + row * half, half, i, -1.0f);
}

// ---- SwiGLU. A thread takes eight elements.

extern "C" __global__ void swiglu(bf16* gate, const bf16* up, long long eights) {
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= eights) return;
  Eight g = reinterpret_cast<Eight*>(gate)[at];
  const Eight u = reinterpret_cast<const Eight*>(up)[at];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float a = wide(g.x[i]);
    g.x[i] = narrow(a / (1.0f + __expf(-a)) * wide(u.x[i]));
  }
  reinterpret_cast<Eight*>(gate)[at] = g;
}

// gate becomes its gradient, up its gradient, and d, the gradient of their product, becomes the product.
extern "C" __global__ void swiglu_backward(bf16* gate, bf16* up, bf16* d, long long eights) {
  const long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= eights) return;
  Eight gs = reinterpret_cast<Eight*>(gate)[at], us = reinterpret_cast<Eight*>(up)[at];
  Eight ds = reinterpret_cast<Eight*>(d)[at];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float g = wide(gs.x[i]), u = wide(us.x[i]), dy = wide(ds.x[i]);
    const float sigmoid = 1.0f / (1.0f + __expf(-g));
    const float silu = g * sigmoid;
    ds.x[i] = narrow(silu * u);
    us.x[i] = narrow(dy * silu);
    gs.x[i] = narrow(dy * u * sigmoid * (1.0f + g * (1.0f - sigmoid)));
  }
  reinterpret_cast<Eight*>(gate)[at] = gs;
  reinterpret_cast<Eight*>(up)[at] = us;
  reinterpret_cast<Eight*>(d)[at] = ds;
}

// ---- Cross-entropy. A block of 1024 threads takes a row; the logits become their gradient.

extern "C" __global__ void __launch_bounds__(1024) cross_entropy(
    bf16* logits, const long long* labels, float* nll, int columns, float scale) {
  __shared__ float scratch[32];
  __shared__ float highest[32];
  const long long label = labels[blockIdx.x];
  auto* row = reinterpret_cast<Eight*>(logits + static_cast<long long>(blockIdx.x) * columns);
  const int eights = columns / 8;
  if (label < 0) {
    for (int at = threadIdx.x; at < eights; at += 1024) row[at] = {};
    if (threadIdx.x == 0) nll[blockIdx.x] = 0.0f;
    return;
  }
  // Lowest finite number, so that a difference is never of infinities.
  float most = -3.402823466e38f;
  for (int at = threadIdx.x; at < eights; at += 1024) {
    const Eight e = row[at];
#pragma unroll
    for (int i = 0; i < 8; ++i) most = fmaxf(most, wide(e.x[i]));
  }
  for (int other = 16; other > 0; other /= 2) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, other));
  if (threadIdx.x % 32 == 0) highest[threadIdx.x / 32] = most;
  __syncthreads();
  for (int warp = 0; warp < 32; ++warp) most = fmaxf(most, highest[warp]);
  float sum = 0.0f;
  for (int at = threadIdx.x; at < eights; at += 1024) {
    const Eight e = row[at];
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += __expf(wide(e.x[i]) - most);
  }
  sum = of_block(sum, scratch);
  const float picked = wide(logits[static_cast<long long>(blockIdx.x) * columns + label]);
  __syncthreads();
  if (threadIdx.x == 0) nll[blockIdx.x] = logf(sum) - (picked - most);
  const float factor = scale / sum;
  for (int at = threadIdx.x; at < eights; at += 1024) {
    Eight e = row[at];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float p = __expf(wide(e.x[i]) - most) * factor;
      if (at * 8 + i == label) p -= scale;
      e.x[i] = narrow(p);
    }
    row[at] = e;
  }
}
