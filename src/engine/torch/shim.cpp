// What tch does not wrap, over LibTorch's own C++ interface. No CUDA header is needed.
//
// Every function returns nullptr, or the text of the exception that was thrown (the caller frees it).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention.h>
#include <ATen/ops/_scaled_dot_product_cudnn_attention_backward.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention.h>
#include <ATen/ops/_scaled_dot_product_efficient_attention_backward.h>
#include <ATen/ops/empty.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>

namespace {
template <typename F>
char* guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& e) {
    return strdup(e.what());
  }
}

c10::DeviceAllocator* cuda() {
  return c10::getDeviceAllocator(c10::DeviceType::CUDA);
}

// Streams and events of CUDA through the interface that every backend registers: no CUDA header, no CUDA library.
c10::impl::VirtualGuardImpl cuda_guard() {
  return c10::impl::VirtualGuardImpl(c10::DeviceType::CUDA);
}

c10::Stream current_stream(int device) {
  return cuda_guard().getStream(
      c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device)));
}

// The kernels of fused attention that have a backward of their own; the numbers are torch/attention.rs's.
enum Fused { kCudnn = 0, kFlash = 1, kEfficient = 2 };

at::Tensor swapped(const at::Tensor& x) {
  return x.transpose(1, 2);
}

at::Tensor* owned(at::Tensor x) {
  return new at::Tensor(std::move(x));
}

std::optional<int64_t> to_the_left(int64_t window) {
  return window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt;
}

// Window 0 is none; a causal kernel sees nothing to the right.
std::optional<int64_t> to_the_right(int64_t window) {
  return window > 0 ? std::optional<int64_t>(0) : std::nullopt;
}
}  // namespace

extern "C" {

const char* fathom_torch_version() {
  return TORCH_VERSION;
}

// out: allocated, peak allocated, reserved, peak reserved; bytes.
char* fathom_cuda_memory(int device, int64_t* out) {
  return guarded([=] {
    const auto stats = cuda()->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    // Index 0 is the aggregate over the small and the large pool.
    out[0] = stats.allocated_bytes[0].current;
    out[1] = stats.allocated_bytes[0].peak;
    out[2] = stats.reserved_bytes[0].current;
    out[3] = stats.reserved_bytes[0].peak;
  });
}

char* fathom_cuda_reset_peak(int device) {
  return guarded([=] { cuda()->resetPeakStats(static_cast<c10::DeviceIndex>(device)); });
}

char* fathom_cuda_empty_cache() {
  return guarded([] { cuda()->emptyCache(); });
}

// out: free, total; bytes.
char* fathom_cuda_free_total(int device, int64_t* out) {
  return guarded([=] {
    const auto [free, total] = cuda()->getMemoryInfo(static_cast<c10::DeviceIndex>(device));
    out[0] = static_cast<int64_t>(free);
    out[1] = static_cast<int64_t>(total);
  });
}

// Backward from `output` with `gradient` as the gradient of it; leaves accumulate into their .grad.
char* fathom_backward(const at::Tensor* output, const at::Tensor* gradient) {
  return guarded([=] { torch::autograd::backward({*output}, {*gradient}); });
}

// The state of the CPU's default generator, a uint8 tensor that the caller owns.
char* fathom_cpu_generator_state(at::Tensor** out) {
  return guarded([=] { *out = new at::Tensor(at::detail::getDefaultCPUGenerator().get_state()); });
}

char* fathom_set_cpu_generator_state(const at::Tensor* state) {
  return guarded([=] {
    // A Generator is a handle: the copy sets the state of the default one.
    at::Generator generator = at::detail::getDefaultCPUGenerator();
    generator.set_state(*state);
  });
}

// Causal attention with what its backward needs. q [B, T, N, H], k and v [B, T, K, H]; with `offsets` (int32, of the
// documents in the stream; flash only) B is 1. out: o [B, T, N, H], log-sum-exp, and two tensors that only the same kernel reads.
char* fathom_attention_forward(
    int fused,
    const at::Tensor* q,
    const at::Tensor* k,
    const at::Tensor* v,
    const at::Tensor* offsets,
    int64_t longest,
    int64_t window,
    at::Tensor** out) {
  return guarded([=] {
    if (fused == kCudnn) {
      auto result = at::_scaled_dot_product_cudnn_attention(
          swapped(*q), swapped(*k), swapped(*v), std::nullopt, true, 0.0, true, false);
      out[0] = owned(swapped(std::get<0>(result)));
      out[1] = owned(std::get<1>(result));
      out[2] = owned(std::get<6>(result));
      out[3] = owned(std::get<7>(result));
    } else if (fused == kFlash) {
      std::optional<at::Tensor> documents;
      if (offsets != nullptr) documents = *offsets;
      const auto in = [&](const at::Tensor* x) { return offsets ? x->squeeze(0) : *x; };
      auto result = at::_flash_attention_forward(
          in(q), in(k), in(v), documents, documents, longest, longest, 0.0, true, false,
          std::nullopt, to_the_left(window), to_the_right(window));
      const auto& o = std::get<0>(result);
      out[0] = owned(offsets ? o.unsqueeze(0) : o);
      out[1] = owned(std::get<1>(result));
      out[2] = owned(std::get<2>(result));
      out[3] = owned(std::get<3>(result));
    } else {
      auto result = at::_scaled_dot_product_efficient_attention(
          swapped(*q), swapped(*k), swapped(*v), std::nullopt, true, 0.0, true);
      out[0] = owned(swapped(std::get<0>(result)));
      out[1] = owned(std::get<1>(result));
      out[2] = owned(std::get<2>(result));
      out[3] = owned(std::get<3>(result));
    }
  });
}

// The backward of fathom_attention_forward for the same q, k, v, o and `kept` (its out[1..4]). out: dq, dk, dv.
char* fathom_attention_backward(
    int fused,
    const at::Tensor* d_o,
    const at::Tensor* q,
    const at::Tensor* k,
    const at::Tensor* v,
    const at::Tensor* o,
    const at::Tensor* const* kept,
    const at::Tensor* offsets,
    int64_t longest,
    int64_t window,
    at::Tensor** out) {
  return guarded([=] {
    const at::Tensor none;
    if (fused == kCudnn) {
      auto [dq, dk, dv] = at::_scaled_dot_product_cudnn_attention_backward(
          swapped(*d_o), swapped(*q), swapped(*k), swapped(*v), swapped(*o), *kept[0], *kept[1],
          *kept[2], none, none, none, longest, longest, 0.0, true);
      out[0] = owned(swapped(dq));
      out[1] = owned(swapped(dk));
      out[2] = owned(swapped(dv));
    } else if (fused == kFlash) {
      const at::Tensor documents = offsets ? *offsets : none;
      const auto in = [&](const at::Tensor* x) { return offsets ? x->squeeze(0) : *x; };
      const auto whole = [&](at::Tensor x) { return owned(offsets ? x.unsqueeze(0) : x); };
      auto [dq, dk, dv] = at::_flash_attention_backward(
          in(d_o), in(q), in(k), in(v), in(o), *kept[0], documents, documents, longest, longest,
          0.0, true, *kept[1], *kept[2], std::nullopt, to_the_left(window), to_the_right(window));
      out[0] = whole(dq);
      out[1] = whole(dk);
      out[2] = whole(dv);
    } else {
      auto [dq, dk, dv, bias] = at::_scaled_dot_product_efficient_attention_backward(
          swapped(*d_o), swapped(*q), swapped(*k), swapped(*v), none, swapped(*o), *kept[0],
          *kept[1], *kept[2], 0.0, std::array<bool, 4>{true, true, true, false}, true);
      out[0] = owned(swapped(dq));
      out[1] = owned(swapped(dk));
      out[2] = owned(swapped(dv));
    }
  });
}

// A stream beside the current one.
char* fathom_stream_new(int device, void** out) {
  return guarded([=] {
    *out = new c10::Stream(cuda_guard().getStreamFromGlobalPool(
        c10::Device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device))));
  });
}

// Makes `stream` the current one, and leaves the one that was in its place: twice is as before.
char* fathom_stream_swap(void* stream) {
  return guarded([=] {
    auto* other = static_cast<c10::Stream*>(stream);
    *other = cuda_guard().exchangeStream(*other);
  });
}

void fathom_stream_free(void* stream) {
  delete static_cast<c10::Stream*>(stream);
}

// The handle of the current stream that the CUDA driver knows.
char* fathom_stream_native(int device, void** out) {
  return guarded([=] { *out = current_stream(device).native_handle(); });
}

// An event that marks all that the current stream was given so far; `timed` costs a little and can be subtracted.
char* fathom_event_record(int device, bool timed, void** out) {
  return guarded([=] {
    auto event = std::make_unique<c10::Event>(
        c10::DeviceType::CUDA,
        timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT);
    event->record(current_stream(device));
    *out = event.release();
  });
}

// What the current stream is given from now on waits for the event.
char* fathom_event_wait(int device, void* event) {
  return guarded([=] { static_cast<c10::Event*>(event)->block(current_stream(device)); });
}

// Between two timed events whose work is done.
char* fathom_event_milliseconds(void* from, void* to, double* out) {
  return guarded([=] {
    auto* end = static_cast<c10::Event*>(to);
    end->synchronize();
    *out = static_cast<c10::Event*>(from)->elapsedTime(*end);
  });
}

void fathom_event_free(void* event) {
  delete static_cast<c10::Event*>(event);
}

// Copies without waiting for the device where one end is pinned host memory.
char* fathom_copy(const at::Tensor* to, const at::Tensor* from) {
  return guarded([=] { to->copy_(*from, /*non_blocking=*/true); });
}

// Host memory of the size and dtype of `like`, uninitialised; page-locked for a CUDA device.
char* fathom_host_empty_like(const at::Tensor* like, bool pinned, at::Tensor** out) {
  return guarded([=] {
    const auto options = like->options().device(c10::DeviceType::CPU).pinned_memory(pinned);
    *out = owned(at::empty(like->sizes(), options));
  });
}

// Whether two tensors are parts of one allocation.
char* fathom_same_storage(const at::Tensor* a, const at::Tensor* b, bool* out) {
  return guarded([=] { *out = a->is_alias_of(*b); });
}

// AdamW in one pass, in place; options: learning rate, beta1, beta2, weight decay, eps.
char* fathom_adamw_step(
    const at::Tensor* weight,
    const at::Tensor* gradient,
    const at::Tensor* exp_avg,
    const at::Tensor* exp_avg_sq,
    const at::Tensor* steps,
    const double* options) {
  return guarded([=] {
    at::_fused_adamw_(
        {*weight}, {*gradient}, {*exp_avg}, {*exp_avg_sq}, {}, {*steps}, options[0], options[1],
        options[2], options[3], options[4], /*amsgrad=*/false, /*maximize=*/false);
  });
}

// Fills an integer tensor with numbers from 0 to below `to` that depend on `seed` and the tensor's size alone.
char* fathom_random(const at::Tensor* x, int64_t to, uint64_t seed) {
  return guarded([=] {
    at::Generator generator = at::globalContext().defaultGenerator(x->device()).clone();
    generator.set_current_seed(seed);
    x->random_(0, to, generator);
  });
}
}
