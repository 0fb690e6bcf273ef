// The layers of a Vision Transformer on activations that lie feature by feature: (image, feature, token), tokens padded
// to whole vectors. A weight meets a run of tokens at a time, so that a single one that lives costs a few vector
// operations, and one that is dead costs nothing. Vectors are the compiler's own (GCC and Clang: AVX-512, AVX2, NEON).

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>
#include <utility>
#include <vector>

namespace {

using at::Tensor;

#if defined(__AVX512F__)
constexpr int64_t LANES = 16, WIDEST = 7;  // of 32 registers: 96 features of a wider run leave the first-level cache
#elif defined(__AVX2__)
constexpr int64_t LANES = 8, WIDEST = 12;  // of 16
#else
constexpr int64_t LANES = 4, WIDEST = 16;  // of 32: NEON
#endif
constexpr int64_t BROAD = LANES == 8 ? 2 : 4;     // vectors of a dense tile, at most
constexpr int64_t SUMS = LANES == 8 ? 12 : 24;    // registers for its sums, whatever its width
constexpr int64_t AHEAD = 8;                      // features
constexpr int64_t CHUNK = 96;                     // rows of one task, a multiple of SUMS; weights.py knows it too

using vec = float __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
using ints = int32_t __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
inline void store(float* to, vec value, int64_t lanes) {  // the first of them
  if (lanes >= LANES) return store(to, value);
  for (int64_t lane = 0; lane < lanes; ++lane) to[lane] = value[lane];
}
inline vec all(float value) { return value - vec{}; }  // adding to zero would change -0, and so stay an addition
inline vec larger(vec a, vec b) { return a > b ? a : b; }

// 2^x to 2 units in the last place; below -126 it is 2^-126. What rounding leaves of x meets a polynomial, fitted at
// Chebyshev nodes; the whole number is in the low bits of a sum, from where it moves to the exponent.
inline vec power_of_two(vec x) {
  x = larger(all(-126.0f), x);  // in this order, what is not a number stays none
  const vec shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  const vec moved = x + shift, rest = x - (moved - shift);
  vec sum = all(1.326697039e-3f);
  for (float coefficient : {9.675459745e-3f, 5.550742616e-2f, 2.402212175e-1f, 6.931469492e-1f, 1.000000071f})
    sum = sum * rest + coefficient;
  return (vec)((ints)sum + ((ints)moved << 23));
}

// x times the normal distribution function, to 4e-7 of x: erf(z) / z as a polynomial of z^2 / 7 - 1, fitted at Chebyshev
// nodes for z^2 up to 14, from where on erf is 1. There is no division in it, which would cost more than all the rest.
inline vec gelu(vec x) {
  constexpr float END = 3.7416573f;
  const vec z = -larger(-larger(x * 0.70710678f, all(-END)), all(-END));
  const vec place = z * z * (1.0f / 7.0f) - 1.0f;
  vec sum = all(-1.741646008e-03f);
  for (float coefficient :
       {4.593396470e-03f, -4.180200779e-03f, 5.476115408e-03f, -1.507074424e-02f, 2.683519092e-02f, -3.780180151e-02f, 5.268537557e-02f,
        -7.124968682e-02f, 9.081587122e-02f, -1.120814591e-01f, 1.395180828e-01f, -1.884327572e-01f, 3.778954333e-01f})
    sum = sum * place + coefficient;
  return x * (0.5f + 0.5f * (z * sum));
}

// What a layer does with its sums before it writes them: bias, then GELU or the residual stream.
struct Finish {
  const float* bias;
  const float* residual;
  bool activated;
  float* out;
  int64_t stride;

  vec start(int64_t row) const { return all(bias ? bias[row] : 0.0f); }

  template <int64_t V>
  void write(vec (&sums)[V], int64_t row, int64_t column) const {
    const int64_t place = row * stride + column;
    if (residual)
#pragma GCC unroll 16
      for (int64_t v = 0; v < V; ++v) sums[v] += load(residual + place + v * LANES);
    if (activated)
#pragma GCC unroll 16
      for (int64_t v = 0; v < V; ++v) sums[v] = gelu(sums[v]);
#pragma GCC unroll 16
    for (int64_t v = 0; v < V; ++v) store(out + place + v * LANES, sums[v]);
  }

  // The residual stream has left the first cache since the layer's norm read it.
  template <int64_t R, int64_t V>
  void prefetch(int64_t row, int64_t column) const {
    if (residual)
      for (int64_t r = 0; r < R; ++r)
        for (int64_t v = 0; v < V; ++v) __builtin_prefetch(residual + (row + r) * stride + column + v * LANES);
  }

  // Sums that are not whole yet wait where their output will be.
  template <int64_t V>
  void pause(const vec (&sums)[V], int64_t row, int64_t column) const {
    for (int64_t v = 0; v < V; ++v) store(out + row * stride + column + v * LANES, sums[v]);
  }

  template <int64_t V>
  void resume(vec (&sums)[V], int64_t row, int64_t column) const {
    for (int64_t v = 0; v < V; ++v) sums[v] = load(out + row * stride + column + v * LANES);
  }
};

// Columns, in vectors, shared out evenly over the fewest runs of at most `widest`: 13 by 4 are 3, 3, 3 and 4.
struct Runs {
  int64_t vectors, count;

  Runs(int64_t tokens, int64_t widest) : vectors((tokens + LANES - 1) / LANES), count((vectors + widest - 1) / widest) {}
  int64_t first(int64_t run) const { return run * vectors / count; }
  int64_t width(int64_t run) const { return first(run + 1) - first(run); }
};

// Calls function.template operator()<N>() for N = n in 1..LIMIT.
template <int64_t LIMIT, class Function>
void with_constant(int64_t n, const Function& function) {
  [&]<size_t... I>(std::index_sequence<I...>) {
    ((n == int64_t(I) + 1 ? (function.template operator()<int64_t(I) + 1>(), 0) : 0), ...);
  }(std::make_index_sequence<LIMIT>{});
}

// Calls function.template operator()<R>(row) for tiles of at most TALL rows, R of them from `row` on.
template <int64_t TALL, class Function>
void in_tiles(int64_t from, int64_t to, const Function& function) {
  for (int64_t row = from; row < to; row += TALL)
    with_constant<TALL>(std::min(TALL, to - row), [&]<int64_t R>() { function.template operator()<R>(row); });
}

// sums[r][v] += a[r, k] * b[k, v] over `depth` of k. Rows of b lie too far apart for the processor to foresee, so they are
// fetched some steps ahead; as many numbers from `next` on as a has come into the cache on the way.
template <int64_t R, int64_t V>
inline void multiply(vec (&sums)[R][V], const float* a, int64_t row, int64_t step, const float* b, int64_t stride,
                     int64_t depth, const float* next = nullptr) {
  for (int64_t k = 0; k < depth; ++k) {
    if (next) __builtin_prefetch(next + k * R);
    vec x[V];
    for (int64_t v = 0; v < V; ++v) x[v] = load(b + k * stride + v * LANES);
    for (int64_t v = 0; v < V; ++v) __builtin_prefetch(b + (k + AHEAD) * stride + v * LANES);
    for (int64_t r = 0; r < R; ++r) {
      const vec weight = all(a[r * row + k * step]);
      for (int64_t v = 0; v < V; ++v) sums[r][v] += weight * x[v];
    }
  }
}

template <int64_t R, int64_t V>
inline void begin(vec (&sums)[R][V], const Finish& finish, int64_t row) {
  for (int64_t r = 0; r < R; ++r)
    for (int64_t v = 0; v < V; ++v) sums[r][v] = finish.start(row + r);
}

template <int64_t R, int64_t V>
inline void end(vec (&sums)[R][V], const Finish& finish, int64_t row, int64_t column) {
  for (int64_t r = 0; r < R; ++r) finish.write(sums[r], row + r, column);
}

// ---- three ways to hold a weight -----------------------------------------------------------------

struct Dense {
  static constexpr int64_t widest = BROAD;
  const float* values;
  int64_t inputs;

  template <int64_t V>
  void rows(int64_t from, int64_t to, const float* x, int64_t column, const Finish& finish) const {
    in_tiles<SUMS / V>(from, to, [&]<int64_t R>(int64_t row) {
      const float* weights = values + row * inputs;
      const float* next = column == 0 ? weights + R * inputs : nullptr;  // other columns find them in the cache
      vec sums[R][V];
      begin(sums, finish, row);
      finish.template prefetch<R, V>(row, column);
      multiply(sums, weights, inputs, 1, x + column, finish.stride, inputs, next);
      end(sums, finish, row, column);
    });
  }
};

// Panels of columns, one after the other, so that what they read stays in the first-level cache while rows pass. Within
// a panel and a chunk, rows come by how many of their weights live: loops of like length end as the processor foresees.
template <class Weight>
struct Csr {
  static constexpr int64_t widest = WIDEST;
  const int32_t* order;  // of rows, panel by panel
  const int32_t* starts;
  const int16_t* columns;  // within the panel
  const Weight* values;
  int64_t outputs, panels, width;

  template <int64_t V>
  void rows(int64_t from, int64_t to, const float* x, int64_t column, const Finish& finish) const {
    for (int64_t panel = 0; panel < panels; ++panel) {
      const float* tokens = x + panel * width * finish.stride + column;
      for (int64_t i = panel * outputs + from; i < panel * outputs + to; ++i) {
        const int64_t row = order[i];
        vec sums[1][V];
        if (panel == 0) begin(sums, finish, row);
        else finish.resume(sums[0], row, column);
        for (int32_t entry = starts[i]; entry < starts[i + 1]; ++entry) {
          const vec weight = all(float(values[entry]));
          const float* feature = tokens + columns[entry] * finish.stride;
          for (int64_t v = 0; v < V; ++v) sums[0][v] += weight * load(feature + v * LANES);
        }
        if (panel + 1 == panels) end(sums, finish, row, column);
        else finish.pause(sums[0], row, column);
      }
    }
  }
};

// Square blocks, row by row of blocks; the values of a block lie output by output.
struct Blocks {
  static constexpr int64_t widest = BROAD;
  const int32_t* starts;
  const int32_t* columns;
  const float* values;
  int64_t side;

  template <int64_t V>
  void rows(int64_t from, int64_t to, const float* x, int64_t column, const Finish& finish) const {
    for (int64_t begins = from; begins < to; begins += side)
      in_tiles<SUMS / V>(begins, std::min(begins + side, to), [&]<int64_t R>(int64_t row) {
        vec sums[R][V];
        begin(sums, finish, row);
        for (int32_t block = starts[row / side]; block < starts[row / side + 1]; ++block)
          multiply(sums, values + (block * side + row % side) * side, side, 1,
                   x + column + columns[block] * side * finish.stride, finish.stride, side);
        end(sums, finish, row, column);
      });
  }
};

// Of the CPU, as torch dispatches, and of the type that data_ptr is asked for. What indices lead to, weights.py checks once.
void expect(bool fits, const char* what) { TORCH_CHECK(fits, what, " do not fit; deploy the model again"); }

// Indices are those that were checked if they are the same tensors and nobody wrote to them since.
void expect_checked(std::initializer_list<std::reference_wrapper<const Tensor>> indices, int64_t writes, int64_t tensors) {
  for (const Tensor& index : indices) {
    tensors -= reinterpret_cast<int64_t>(index.unsafeGetTensorImpl());
    writes -= index.is_inference() ? 0 : index._version();
  }
  expect(tensors == 0 && writes == 0, "altered indices");
}

void expect_columns(const Tensor& x) {
  expect(x.dim() == 3 && x.is_contiguous() && x.size(1) > 0 && x.size(2) % LANES == 0, "activations");
}

void expect_vector(const std::optional<Tensor>& vector, int64_t size, const char* what) {
  expect(!vector || (vector->numel() == size && vector->is_contiguous()), what);
}

template <class Weights>
Tensor linear(const Weights& weights, const Tensor& x, int64_t outputs, const std::optional<Tensor>& bias,
              const std::optional<Tensor>& residual, bool activated) {
  expect_columns(x);
  expect_vector(bias, outputs, "biases");
  expect_vector(residual, x.size(0) * outputs * x.size(2), "residual sums");
  const int64_t images = x.size(0), inputs = x.size(1), tokens = x.size(2);
  Tensor out = at::empty({images, outputs, tokens}, x.options());
  const Runs runs(tokens, Weights::widest);
  const int64_t chunks = (outputs + CHUNK - 1) / CHUNK;
  const float* source = x.const_data_ptr<float>();
  const float* added = residual ? residual->const_data_ptr<float>() : nullptr;
  float* target = out.mutable_data_ptr<float>();
  at::parallel_for(0, images * runs.count * chunks, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t run = task % runs.count, chunk = task / runs.count % chunks, image = task / chunks / runs.count;
      const int64_t offset = image * outputs * tokens;
      const Finish finish{bias ? bias->const_data_ptr<float>() : nullptr, added ? added + offset : nullptr, activated,
                          target + offset, tokens};
      with_constant<Weights::widest>(runs.width(run), [&]<int64_t V>() {
        weights.template rows<V>(chunk * CHUNK, std::min(outputs, (chunk + 1) * CHUNK), source + image * inputs * tokens,
                                 runs.first(run) * LANES, finish);
      });
    }
  });
  return out;
}

using Optional = std::optional<Tensor>;

Tensor dense(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& residual, bool activated) {
  expect(x.dim() == 3 && weight.dim() == 2 && weight.is_contiguous() && weight.size(1) == x.size(1), "dense weights");
  return linear(Dense{weight.const_data_ptr<float>(), weight.size(1)}, x, weight.size(0), bias, residual, activated);
}

template <class Weight>
Tensor csr_of(const Tensor& x, const Tensor& order, const Tensor& starts, const Tensor& columns, const Tensor& values,
              int64_t inputs, const Optional& bias, const Optional& residual, bool activated) {
  expect(x.dim() == 3 && x.size(1) == inputs && order.dim() == 2 && order.size(0) > 0 && order.is_contiguous() &&
             starts.numel() == order.numel() + 1 && starts.is_contiguous() && columns.dim() == 1 &&
             columns.is_contiguous() && values.sizes() == columns.sizes() && values.is_contiguous(),
         "weights in CSR");
  const int64_t panels = order.size(0), outputs = order.size(1), width = (inputs + panels - 1) / panels;
  const Csr<Weight> weights{order.const_data_ptr<int32_t>(),   starts.const_data_ptr<int32_t>(),
                            columns.const_data_ptr<int16_t>(), values.const_data_ptr<Weight>(), outputs, panels, width};
  return linear(weights, x, outputs, bias, residual, activated);
}

Tensor csr(const Tensor& x, const Tensor& order, const Tensor& starts, const Tensor& columns, const Tensor& values,
           int64_t inputs, int64_t writes, int64_t tensors, const Optional& bias, const Optional& residual, bool activated) {
  expect_checked({order, starts, columns}, writes, tensors);
  const auto call = values.scalar_type() == at::kBFloat16 ? csr_of<at::BFloat16> : csr_of<float>;
  return call(x, order, starts, columns, values, inputs, bias, residual, activated);
}

Tensor blocks(const Tensor& x, const Tensor& starts, const Tensor& columns, const Tensor& values, int64_t inputs,
              int64_t writes, int64_t tensors, const Optional& bias, const Optional& residual, bool activated) {
  expect_checked({starts, columns}, writes, tensors);
  expect(x.dim() == 3 && x.size(1) == inputs && starts.dim() == 1 && starts.numel() > 0 && starts.is_contiguous() &&
             columns.dim() == 1 && columns.is_contiguous() && values.dim() == 3 && values.is_contiguous() &&
             values.size(0) == columns.size(0) && values.size(1) == values.size(2) && values.size(2) > 0 &&
             CHUNK % values.size(2) == 0,
         "weights in blocks");
  const int64_t side = values.size(2);
  return linear(Blocks{starts.const_data_ptr<int32_t>(), columns.const_data_ptr<int32_t>(), values.const_data_ptr<float>(), side},
                x, (starts.size(0) - 1) * side, bias, residual, activated);
}

// ---- what lies between linear layers ---------------------------------------------------------------

// Normalise each token over its features.
Tensor layer_norm(const Tensor& x, const Optional& weight, const Optional& bias, double epsilon) {
  expect_columns(x);
  const int64_t images = x.size(0), features = x.size(1), tokens = x.size(2);
  expect_vector(weight, features, "gains of a norm");
  expect_vector(bias, features, "shifts of a norm");
  Tensor out = at::empty_like(x);
  const Runs runs(tokens, BROAD);
  const float* gains = weight ? weight->const_data_ptr<float>() : nullptr;
  const float* shifts = bias ? bias->const_data_ptr<float>() : nullptr;
  at::parallel_for(0, images * runs.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t task = first; task < last; ++task) {
      const int64_t offset = task / runs.count * features * tokens + runs.first(task % runs.count) * LANES;
      const float* from = x.const_data_ptr<float>() + offset;
      float* to = out.mutable_data_ptr<float>() + offset;
      with_constant<BROAD>(runs.width(task % runs.count), [&]<int64_t V>() {
        vec mean[V] = {}, scale[V] = {};
        for (int64_t f = 0; f < features; ++f)
          for (int64_t v = 0; v < V; ++v) mean[v] += load(from + f * tokens + v * LANES);
        for (int64_t v = 0; v < V; ++v) mean[v] /= float(features);
        for (int64_t f = 0; f < features; ++f)
          for (int64_t v = 0; v < V; ++v) {
            const vec centred = load(from + f * tokens + v * LANES) - mean[v];
            scale[v] += centred * centred;
          }
        for (int64_t v = 0; v < V; ++v)
          for (int64_t lane = 0; lane < LANES; ++lane)
            scale[v][lane] = 1.0f / std::sqrt(scale[v][lane] / float(features) + float(epsilon));
        for (int64_t f = 0; f < features; ++f) {
          const float gain = gains ? gains[f] : 1.0f, shift = shifts ? shifts[f] : 0.0f;
          for (int64_t v = 0; v < V; ++v) {
            const int64_t place = f * tokens + v * LANES;
            store(to + place, (load(from + place) - mean[v]) * scale[v] * gain + shift);
          }
        }
      });
    }
  });
  return out;
}

// One head's output for V vectors of queries: scores, their softmax over the tokens, and the mean of the values. Of the
// queries, the first `asked` are the image's own.
template <int64_t V>
void attend(const float* queries, const float* keys, const float* values, float* out, int64_t stride, int64_t width,
            int64_t tokens, int64_t asked, float scale, std::vector<float>& room) {
  room.resize(tokens * V * LANES);
  float* scores = room.data();
  vec most[V], sum[V] = {};
  for (vec& value : most) value = all(-std::numeric_limits<float>::infinity());
  in_tiles<SUMS / BROAD>(0, tokens, [&]<int64_t R>(int64_t key) {
    vec sums[R][V] = {};
    multiply(sums, keys + key, 1, stride, queries, stride, width);
    for (int64_t r = 0; r < R; ++r)
      for (int64_t v = 0; v < V; ++v) {
        most[v] = larger(most[v], sums[r][v]);
        store(scores + ((key + r) * V + v) * LANES, sums[r][v]);
      }
  });
  for (vec& value : most) value *= scale;
  for (int64_t key = 0; key < tokens; ++key)
    for (int64_t v = 0; v < V; ++v) {
      float* place = scores + (key * V + v) * LANES;
      const vec share = power_of_two(load(place) * scale - most[v]);
      sum[v] += share;
      store(place, share);
    }
  for (vec& value : sum) value = 1.0f / value;
  in_tiles<SUMS / BROAD>(0, width, [&]<int64_t R>(int64_t feature) {
    vec sums[R][V] = {};
    multiply(sums, values + feature * stride, stride, 1, scores, V * LANES, tokens);
    for (int64_t r = 0; r < R; ++r)
      for (int64_t v = 0; v < V; ++v)
        store(out + (feature + r) * stride + v * LANES, sums[r][v] * sum[v], asked - v * LANES);
  });
}

// Queries, keys and values of all heads, one below the other, to the heads' outputs. Columns are images side by side,
// of `tokens` each, and padding, which goes with the last of them.
Tensor attention(const Tensor& qkv, int64_t heads, int64_t together, int64_t tokens, double scale) {
  expect_columns(qkv);
  expect(heads > 0 && qkv.size(1) % (3 * heads) == 0 && together > 0 && tokens > 0 && together * tokens <= qkv.size(2),
         "queries, keys and values");
  const int64_t images = qkv.size(0) * together, inner = qkv.size(1) / 3, stride = qkv.size(2), width = inner / heads;
  Tensor out = at::empty({qkv.size(0), inner, stride}, qkv.options());
  const Runs runs(tokens + stride - together * tokens, BROAD);  // of the last image, which is the longest
  at::parallel_for(0, images * heads * runs.count, 1, [&](int64_t first, int64_t last) {
    std::vector<float> room;
    for (int64_t task = first; task < last; ++task) {
      const int64_t run = task % runs.count, head = task / runs.count % heads, image = task / runs.count / heads;
      const int64_t begins = image % together * tokens, column = runs.first(run) * LANES;
      const int64_t ends = (image + 1) % together ? tokens : stride - begins;
      const int64_t sequence = image / together * inner * stride, place = head * width * stride + begins;
      const float* queries = qkv.const_data_ptr<float>() + 3 * sequence + place;
      const float* keys = queries + inner * stride;
      float* target = out.mutable_data_ptr<float>() + sequence + place;
      with_constant<BROAD>(runs.width(run), [&]<int64_t V>() {
        attend<V>(queries + column, keys, keys + inner * stride, target + column, stride, width, tokens, ends - column,
                  float(scale * std::numbers::log2e), room);
      });
    }
  });
  return out;
}

}  // namespace

// For the CPU only: torch.compile, which asks every other kernel for shapes first, leaves these as they are.
TORCH_LIBRARY(svite, library) {
  const auto cpu = [](auto* kernel) { return torch::dispatch(c10::kCPU, kernel); };
  library.def("dense(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, bool activated) -> Tensor", cpu(dense));
  library.def("csr(Tensor x, Tensor order, Tensor starts, Tensor columns, Tensor values, int inputs, int writes, int tensors, Tensor? bias, Tensor? residual, bool activated) -> Tensor", cpu(csr));
  library.def("blocks(Tensor x, Tensor starts, Tensor columns, Tensor values, int inputs, int writes, int tensors, Tensor? bias, Tensor? residual, bool activated) -> Tensor", cpu(blocks));
  library.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float epsilon) -> Tensor", cpu(layer_norm));
  library.def("attention(Tensor qkv, int heads, int images, int tokens, float scale) -> Tensor", cpu(attention));
}
