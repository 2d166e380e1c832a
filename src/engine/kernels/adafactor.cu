// Adafactor's step of a matrix in four passes, and of a vector in one. Comes after kernels.cu, in one source.
//
// A block of 256 threads takes a tile of up to 32 rows of 1024 columns, four columns a thread, two rows at once. What has to be
// known of all tiles is summed up by the block that is the last to add its own, in the order of the tiles. The matrix is read
// from alternate ends: what a pass read last is still in the cache when the next begins.

constexpr int kMostRows = 32, kColumns = 1024, kAtOnce = 2;

// Blocks that have added their sum, of the two kernels that wait for the last one. Back to 0 when it has.
__device__ unsigned int moments_summed, squares_summed;

// What is known of a whole matrix: the places in `factors`.
enum Factor {
  kInverse,  // one over the mean (the sum) of the rows' second moments
  kSize,     // of the step
  kScale,    // of the update: the step's size, with the update's own held to the threshold, negative
  kSquares,  // the sum of squares of the gradient
};

__device__ __forceinline__ void read_four(const float* from, float* to) {
  const float4 v = *reinterpret_cast<const float4*>(from);
  to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

__device__ __forceinline__ void read_four(const bf16* from, float* to) {
  const ushort4 v = *reinterpret_cast<const ushort4*>(from);
  to[0] = wide(v.x), to[1] = wide(v.y), to[2] = wide(v.z), to[3] = wide(v.w);
}

__device__ __forceinline__ float as_float(float x) { return x; }

__device__ __forceinline__ float as_float(bf16 x) { return wide(x); }

// The random number for element `at`: 16 bits of what the four elements around it share.
__device__ __forceinline__ unsigned long long random_four(unsigned long long seed, long long at) {
  return mix(seed + (at / 4 + 1) * 0x9e3779b97f4a7c15ull);
}

__device__ __forceinline__ void write_one(float* to, float x, unsigned long long, int, bool) { *to = x; }

__device__ __forceinline__ void write_one(bf16* to, float x, unsigned long long random, int place, bool stochastic) {
  *to = stochastic ? narrow(x, static_cast<unsigned>(random >> (16 * place)) & 0xffffu) : narrow(x);
}

__device__ __forceinline__ void write_four(float* to, const float* from, unsigned long long, bool) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}

__device__ __forceinline__ void write_four(bf16* to, const float* from, unsigned long long random, bool stochastic) {
  bf16 v[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) write_one(v + i, from[i], random, i, stochastic);
  *reinterpret_cast<ushort4*>(to) = make_ushort4(v[0], v[1], v[2], v[3]);
}

// `x`, or `least` where it is below that; what is no number stays so.
__device__ __forceinline__ float at_least(float x, float least) { return x < least ? least : x; }

// As torch.lerp.
__device__ __forceinline__ float lerp(float from, float to, float share) {
  return share < 0.5f ? from + share * (to - from) : to - (to - from) * (1.0f - share);
}

// A rule of sums has no least root mean square of a weight.
__device__ __forceinline__ bool of_sums(float floor) { return floor < 0.0f; }

// What the second moment of a row (of a column) is made of: the mean of squares, or their sum with eps for each.
__device__ __forceinline__ float moment(float squares, float count, float eps, float floor) {
  return of_sums(floor) ? squares + eps * count : squares / count;
}

// A row's and a column's part of one over the root of a second moment.
__device__ __forceinline__ float row_part(float row, float inverse, float floor) {
  return of_sums(floor) ? rsqrtf(row * inverse) : row * inverse;
}

__device__ __forceinline__ float column_part(float column, float floor) {
  return of_sums(floor) ? rsqrtf(column) : column;
}

__device__ __forceinline__ float both_parts(float row, float column, float eps, float floor) {
  return of_sums(floor) ? row * column : rsqrtf(at_least(row * column, eps * eps));
}

// The step's size, given the sum of squares of the weight.
__device__ __forceinline__ float size_of_step(float size, float squares, float count, float floor) {
  return of_sums(floor) ? size : size * at_least(sqrtf(squares / count), floor);
}

// What the update is multiplied with, given its sum of squares.
__device__ __forceinline__ float scale_of_update(float size, float squares, float count, float clip) {
  return -size / at_least(sqrtf(squares / count) / clip, 1.0f);
}

// Adds a block's sum. True for the threads of the last block to do so.
__device__ __forceinline__ bool is_last(float sum, float* sums, int place, int blocks, unsigned int* summed) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    __stcg(sums + place, sum);
    __threadfence();
    last = atomicInc(summed, blocks - 1) == blocks - 1;
  }
  __syncthreads();
  return last;
}

// The sum of numbers that other blocks wrote, for every thread.
__device__ __forceinline__ float sum_of(const float* sums, int count, float* scratch) {
  float sum = 0.0f;
  for (int at = threadIdx.x; at < count; at += blockDim.x) sum += __ldcg(sums + at);
  return of_block(sum, scratch);
}

// Sums of squares of the gradient over each row and each column of each tile, of the weight over each tile.
template <typename Weight>
__device__ __forceinline__ void sums_of_squares(
    const float* __restrict__ grad, const Weight* __restrict__ weight, float* __restrict__ by_row,
    float* __restrict__ by_column, float* __restrict__ of_weight, int rows, int columns, int tile_rows) {
  __shared__ float of_rows[kMostRows][8];
  __shared__ float scratch[32];
  const int column = blockIdx.x * kColumns + threadIdx.x * 4, first = blockIdx.y * tile_rows;
  float sums[4] = {}, weights = 0.0f;
  for (int r = 0; r < tile_rows; r += kAtOnce) {
    float g[kAtOnce][4] = {}, w[kAtOnce][4] = {};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (first + r + j < rows && column < columns) {
        const long long at = static_cast<long long>(first + r + j) * columns + column;
        read_four(grad + at, g[j]);
        read_four(weight + at, w[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      float square = 0.0f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[i] += g[j][i] * g[j][i];
        square += g[j][i] * g[j][i];
        weights += w[j][i] * w[j][i];
      }
      square = of_warp(square);
      if (threadIdx.x % 32 == 0) of_rows[r + j][threadIdx.x / 32] = square;
    }
  }
  if (column < columns) {
    write_four(by_column + static_cast<long long>(blockIdx.y) * columns + column, sums, 0, false);
  }
  weights = of_block(weights, scratch);
  if (threadIdx.x == 0) of_weight[blockIdx.y * gridDim.x + blockIdx.x] = weights;
  if (threadIdx.x < tile_rows && first + threadIdx.x < rows) {
    float sum = 0.0f;
    for (int warp = 0; warp < 8; ++warp) sum += of_rows[threadIdx.x][warp];
    by_row[static_cast<long long>(blockIdx.x) * rows + first + threadIdx.x] = sum;
  }
}

// The second moments move on. The first blocks take 32 columns each, the others 256 rows.
extern "C" __global__ void __launch_bounds__(256) adafactor_moments(
    float* row_moments, float* column_moments, const float* by_row, const float* by_column,
    const float* of_weight, float* sums, float* factors, float share, float eps, float floor, float size,
    int rows, int columns, int tiles_across, int tiles_down) {
  __shared__ float parts[8][32];
  __shared__ float scratch[32];
  const int blocks = gridDim.x - (columns + 31) / 32;  // of rows, each with two sums: of moments, and of squares
  const int of_columns = (columns + 31) / 32, lane = threadIdx.x % 32, group = threadIdx.x / 32;
  if (blockIdx.x < of_columns) {
    const int column = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (column < columns) {
#pragma unroll 4
      for (int tile = group; tile < tiles_down; tile += 8) {
        sum += by_column[static_cast<long long>(tile) * columns + column];
      }
    }
    parts[group][lane] = sum;
    __syncthreads();
    if (group == 0 && column < columns) {
      for (int other = 1; other < 8; ++other) sum += parts[other][lane];
      column_moments[column] = lerp(column_moments[column], moment(sum, rows, eps, floor), share);
    }
    return;
  }
  const int place = blockIdx.x - of_columns, row = place * 256 + threadIdx.x;
  float moved = 0.0f, sum = 0.0f;
  if (row < rows) {
    for (int tile = 0; tile < tiles_across; ++tile) sum += by_row[static_cast<long long>(tile) * rows + row];
    moved = lerp(row_moments[row], moment(sum, columns, eps, floor), share);
    row_moments[row] = moved;
  }
  moved = of_block(moved, scratch);
  sum = of_block(sum, scratch);
  if (threadIdx.x == 0) __stcg(sums + blocks + place, sum);
  if (!is_last(moved, sums, place, blocks, &moments_summed)) return;
  const float total = sum_of(sums, blocks, scratch);
  const float squares = sum_of(sums + blocks, blocks, scratch);
  const float weights = sum_of(of_weight, tiles_across * tiles_down, scratch);
  if (threadIdx.x == 0) {
    factors[kInverse] = 1.0f / (of_sums(floor) ? total : at_least(total / rows, eps));
    factors[kSize] = size_of_step(size, weights, static_cast<float>(rows) * columns, floor);
    factors[kSquares] = squares;
  }
}

// The sum of squares of the update, and what it is multiplied with.
extern "C" __global__ void __launch_bounds__(256) adafactor_scale(
    const float* __restrict__ grad, const float* __restrict__ row_moments,
    const float* __restrict__ column_moments, float* factors, float* sums, float eps, float floor,
    float clip, int rows, int columns, int tile_rows) {
  __shared__ float scratch[32];
  const int down = gridDim.y - 1 - blockIdx.y;  // from the end that the last pass came to
  const int column = blockIdx.x * kColumns + threadIdx.x * 4, first = down * tile_rows;
  const float inverse = factors[kInverse];
  float sum = 0.0f;
  if (column < columns) {
    float c[4];
    read_four(column_moments + column, c);
#pragma unroll
    for (int i = 0; i < 4; ++i) c[i] = column_part(c[i], floor);
    for (int r = first + tile_rows - kAtOnce; r >= first; r -= kAtOnce) {
      float g[kAtOnce][4] = {};
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (r + j < rows) read_four(grad + static_cast<long long>(r + j) * columns + column, g[j]);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (r + j >= rows) continue;
        const float row = row_part(row_moments[r + j], inverse, floor);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float u = g[j][i] * both_parts(row, c[i], eps, floor);
          sum += u * u;
        }
      }
    }
  }
  sum = of_block(sum, scratch);
  const int blocks = gridDim.x * gridDim.y;
  if (!is_last(sum, sums, down * gridDim.x + blockIdx.x, blocks, &squares_summed)) return;
  const float squares = sum_of(sums, blocks, scratch);
  if (threadIdx.x == 0) {
    factors[kScale] = scale_of_update(factors[kSize], squares, static_cast<float>(rows) * columns, clip);
  }
}

// weight = weight * keep + scale * update, rounded once.
template <typename Weight>
__device__ __forceinline__ void adafactor_apply(
    Weight* __restrict__ weight, const float* __restrict__ grad, const float* __restrict__ row_moments,
    const float* __restrict__ column_moments, const float* __restrict__ factors, float eps, float floor,
    float keep, unsigned long long seed, int stochastic, int rows, int columns, int tile_rows) {
  const int column = blockIdx.x * kColumns + threadIdx.x * 4, first = blockIdx.y * tile_rows;
  if (column >= columns) return;
  const float inverse = factors[kInverse], scale = factors[kScale];
  float c[4];
  read_four(column_moments + column, c);
#pragma unroll
  for (int i = 0; i < 4; ++i) c[i] = column_part(c[i], floor);
  for (int r = first; r < first + tile_rows; r += kAtOnce) {
    float g[kAtOnce][4] = {}, w[kAtOnce][4] = {};
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (r + j < rows) {
        const long long at = static_cast<long long>(r + j) * columns + column;
        read_four(grad + at, g[j]);
        read_four(weight + at, w[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      if (r + j >= rows) continue;
      const float row = row_part(row_moments[r + j], inverse, floor);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[j][i] = w[j][i] * keep + scale * (g[j][i] * both_parts(row, c[i], eps, floor));
      }
      const long long at = static_cast<long long>(r + j) * columns + column;
      write_four(weight + at, w[j], stochastic ? random_four(seed, at) : 0, stochastic);
    }
  }
}

// The whole step of a vector, by one block of 1024 threads: its second moments are its own.
template <typename Weight>
__device__ __forceinline__ void adafactor_vector(
    Weight* weight, const float* grad, float* moments, float* of_grad, float share, float eps, float floor,
    float size, float clip, float keep, unsigned long long seed, int stochastic, int count) {
  __shared__ float scratch[32];
  const auto part = [&](float moment) {
    return rsqrtf(of_sums(floor) ? moment : at_least(moment, eps * eps));
  };
  float weights = 0.0f, squares = 0.0f, grads = 0.0f;
  for (int at = threadIdx.x; at < count; at += 1024) {
    const float w = as_float(weight[at]), g = grad[at];
    const float moved = lerp(moments[at], moment(g * g, 1.0f, eps, floor), share);
    moments[at] = moved;
    const float u = g * part(moved);
    weights += w * w;
    squares += u * u;
    grads += g * g;
  }
  weights = of_block(weights, scratch);
  squares = of_block(squares, scratch);
  grads = of_block(grads, scratch);
  if (threadIdx.x == 0) *of_grad = grads;
  const float scale = scale_of_update(size_of_step(size, weights, count, floor), squares, count, clip);
  for (int at = threadIdx.x; at < count; at += 1024) {
    const float w = as_float(weight[at]) * keep + scale * (grad[at] * part(moments[at]));
    write_one(weight + at, w, stochastic ? random_four(seed, at) : 0, at % 4, stochastic);
  }
}

#define ADAFACTOR(NAME, WEIGHT)                                                                        \
  extern "C" __global__ void __launch_bounds__(256) adafactor_sums_##NAME(                             \
      const float* grad, const WEIGHT* weight, float* by_row, float* by_column, float* of_weight,      \
      int rows, int columns, int tile_rows) {                                                          \
    sums_of_squares(grad, weight, by_row, by_column, of_weight, rows, columns, tile_rows);             \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) adafactor_apply_##NAME(                            \
      WEIGHT* weight, const float* grad, const float* row_moments, const float* column_moments,        \
      const float* factors, float eps, float floor, float keep, unsigned long long seed,               \
      int stochastic, int rows, int columns, int tile_rows) {                                          \
    adafactor_apply(weight, grad, row_moments, column_moments, factors, eps, floor, keep, seed,        \
                    stochastic, rows, columns, tile_rows);                                             \
  }                                                                                                    \
  extern "C" __global__ void __launch_bounds__(1024) adafactor_vector_##NAME(                          \
      WEIGHT* weight, const float* grad, float* moments, float* of_grad, float share, float eps,       \
      float floor, float size, float clip, float keep, unsigned long long seed, int stochastic,        \
      int count) {                                                                                     \
    adafactor_vector(weight, grad, moments, of_grad, share, eps, floor, size, clip, keep, seed,        \
                     stochastic, count);                                                               \
  }
ADAFACTOR(bfloat16, bf16)
ADAFACTOR(float32, float)
