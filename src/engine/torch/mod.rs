//! LibTorch where tch ends: CUDA at run time, memory counters, backward from a given gradient, generator state.

mod device;
mod memory;

pub use device::{DeviceInfo, allocator_cap, cuda_devices, cuda_missing, open_device};
pub use memory::{
    Memory, data_in_use, data_limit, empty_cache, limit_resident_memory, memory, reset_peak,
};

use anyhow::{Result, bail};
use std::ffi::{CStr, c_char, c_int};
use tch::Tensor;

unsafe extern "C" {
    fn fathom_torch_version() -> *const c_char;
    fn fathom_cuda_memory(device: c_int, out: *mut i64) -> *mut c_char;
    fn fathom_cuda_reset_peak(device: c_int) -> *mut c_char;
    fn fathom_cuda_empty_cache() -> *mut c_char;
    fn fathom_cuda_free_total(device: c_int, out: *mut i64) -> *mut c_char;
    fn fathom_backward(
        output: *const torch_sys::C_tensor,
        gradient: *const torch_sys::C_tensor,
    ) -> *mut c_char;
    fn fathom_cpu_generator_state(out: *mut *mut torch_sys::C_tensor) -> *mut c_char;
    fn fathom_set_cpu_generator_state(state: *const torch_sys::C_tensor) -> *mut c_char;
}

/// Turns the shim's answer into a `Result`.
fn checked(answer: *mut c_char) -> Result<()> {
    if answer.is_null() {
        return Ok(());
    }
    // SAFETY: a non-null answer is a NUL-terminated string from strdup, ours to free.
    let message = unsafe {
        let text = CStr::from_ptr(answer).to_string_lossy().into_owned();
        libc::free(answer.cast());
        text
    };
    bail!("{}", message.lines().next().unwrap_or_default())
}

/// The version of LibTorch that this program was built against.
pub fn libtorch_version() -> String {
    // SAFETY: the shim returns a string literal.
    unsafe { CStr::from_ptr(fathom_torch_version()) }.to_string_lossy().into_owned()
}

/// Backward from `output` with `gradient` in place of the usual one; gradients of the leaves accumulate.
///
/// # Shapes
///
/// `gradient` has the shape and dtype of `output`.
///
/// # Panics
///
/// As tch's own operations do, with LibTorch's message; running out of memory is one of them.
pub fn backward(output: &Tensor, gradient: &Tensor) {
    // SAFETY: both pointers are to live tensors; the shim copies the handles.
    let answer = unsafe { fathom_backward(output.as_ptr(), gradient.as_ptr()) };
    if let Err(error) = checked(answer) {
        panic!("{error}");
    }
}

/// The state of the CPU's random generator.
///
/// # Shapes
///
/// A vector of `uint8`, opaque.
///
/// # Errors
///
/// When LibTorch refuses.
pub fn generator_state() -> Result<Tensor> {
    let mut state = std::ptr::null_mut();
    // SAFETY: on success the shim hands over a tensor that it allocated with `new`, as tch's own tensors are.
    unsafe {
        checked(fathom_cpu_generator_state(&mut state))?;
        Ok(Tensor::from_ptr(state))
    }
}

/// Puts the CPU's random generator back into a state of [`generator_state`].
///
/// # Errors
///
/// When `state` is not such a state.
pub fn set_generator_state(state: &Tensor) -> Result<()> {
    // SAFETY: the pointer is to a live tensor.
    checked(unsafe { fathom_set_cpu_generator_state(state.as_ptr()) })
}
