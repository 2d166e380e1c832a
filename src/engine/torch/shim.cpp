// What tch does not wrap, over LibTorch's own C++ interface. No CUDA header is needed.
//
// Every function returns nullptr, or the text of the exception that was thrown (the caller frees it).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/version.h>

#include <cstdint>
#include <cstring>

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
}
