//! LibTorch where tch ends: CUDA at run time, memory counters, backward from a given gradient, generator state, fused attention
//! with a backward of its own, AdamW's fused step, copies beside the arithmetic, CUDA kernels compiled from source.

mod adamw;
pub mod attention;
mod device;
mod machine;
mod memory;
mod nvrtc;
mod random;
mod stream;

pub use adamw::Adamw;
pub use device::{DeviceInfo, allocator_cap, cuda_devices, cuda_missing, open_device};
pub use machine::{device_name, device_text, driver_version, host_memory, machine};
pub use memory::{
    Memory, data_in_use, data_limit, empty_cache, limit_resident_memory, memory, reset_peak,
};
pub use nvrtc::{Argument, Grid, Kernels};
pub use random::fill_random;
pub use stream::{Event, SideStream, copy, host_empty_like};

use anyhow::{Result, bail};
use std::ffi::{CStr, c_char, c_int, c_void};
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
    fn fathom_attention_forward(
        fused: c_int,
        q: *const torch_sys::C_tensor,
        k: *const torch_sys::C_tensor,
        v: *const torch_sys::C_tensor,
        offsets: *const torch_sys::C_tensor,
        longest: i64,
        window: i64,
        out: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn fathom_attention_backward(
        fused: c_int,
        d_o: *const torch_sys::C_tensor,
        q: *const torch_sys::C_tensor,
        k: *const torch_sys::C_tensor,
        v: *const torch_sys::C_tensor,
        o: *const torch_sys::C_tensor,
        kept: *const *const torch_sys::C_tensor,
        offsets: *const torch_sys::C_tensor,
        longest: i64,
        window: i64,
        out: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn fathom_stream_new(device: c_int, out: *mut *mut c_void) -> *mut c_char;
    fn fathom_stream_swap(stream: *mut c_void) -> *mut c_char;
    fn fathom_stream_free(stream: *mut c_void);
    fn fathom_stream_native(device: c_int, out: *mut *mut c_void) -> *mut c_char;
    fn fathom_event_record(device: c_int, timed: bool, out: *mut *mut c_void) -> *mut c_char;
    fn fathom_event_wait(device: c_int, event: *mut c_void) -> *mut c_char;
    fn fathom_event_milliseconds(from: *mut c_void, to: *mut c_void, out: *mut f64) -> *mut c_char;
    fn fathom_event_free(event: *mut c_void);
    fn fathom_copy(to: *const torch_sys::C_tensor, from: *const torch_sys::C_tensor)
    -> *mut c_char;
    fn fathom_host_empty_like(
        like: *const torch_sys::C_tensor,
        pinned: bool,
        out: *mut *mut torch_sys::C_tensor,
    ) -> *mut c_char;
    fn fathom_same_storage(
        a: *const torch_sys::C_tensor,
        b: *const torch_sys::C_tensor,
        out: *mut bool,
    ) -> *mut c_char;
    fn fathom_adamw_step(
        weight: *const torch_sys::C_tensor,
        gradient: *const torch_sys::C_tensor,
        exp_avg: *const torch_sys::C_tensor,
        exp_avg_sq: *const torch_sys::C_tensor,
        steps: *const torch_sys::C_tensor,
        options: *const f64,
    ) -> *mut c_char;
    fn fathom_random(x: *const torch_sys::C_tensor, to: i64, seed: u64) -> *mut c_char;
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

/// The same, where a failure is out of memory or a bug of ours: a panic with LibTorch's message, as tch's own operations.
#[track_caller]
fn must(answer: *mut c_char) {
    if let Err(error) = checked(answer) {
        panic!("{error}");
    }
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
    must(unsafe { fathom_backward(output.as_ptr(), gradient.as_ptr()) });
}

/// Whether two tensors are parts of one allocation.
pub fn same_storage(a: &Tensor, b: &Tensor) -> bool {
    let mut same = false;
    // SAFETY: both pointers are to live tensors, and there is room for the answer.
    must(unsafe { fathom_same_storage(a.as_ptr(), b.as_ptr(), &mut same) });
    same
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
