//! Copies beside the arithmetic: side streams, events, page-locked host memory.
//!
//! On the CPU there is one stream and nothing to wait for: the same code makes plain copies, in the order they are written.

use super::{
    fathom_copy, fathom_event_free, fathom_event_milliseconds, fathom_event_record,
    fathom_event_wait, fathom_host_empty_like, fathom_stream_free, fathom_stream_new,
    fathom_stream_swap, must,
};
use std::ffi::c_void;
use std::ptr::NonNull;
use tch::{Device, Tensor};

/// A queue of work on a device beside the one that computes.
#[derive(Debug)]
pub struct SideStream(Option<NonNull<c_void>>);

/// A mark in the work that a device was given. Dropping it cancels nothing.
#[derive(Debug)]
pub struct Event {
    device: i32,
    handle: Option<NonNull<c_void>>,
}

impl SideStream {
    /// A stream of `device`; on the CPU the only one there is.
    pub fn new(device: Device) -> SideStream {
        let Device::Cuda(index) = device else { return SideStream(None) };
        let mut stream = std::ptr::null_mut();
        // SAFETY: on success the shim hands over an object of its own, freed by `drop`.
        must(unsafe { fathom_stream_new(index as i32, &mut stream) });
        SideStream(NonNull::new(stream))
    }

    /// Gives what `f` does to this stream instead of the current one.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> R {
        let Some(stream) = self.0 else { return f() };
        /// Swaps back when dropped, so that a panic (out of memory) leaves the right stream in place.
        struct Swapped(NonNull<c_void>);
        impl Drop for Swapped {
            fn drop(&mut self) {
                // SAFETY: the stream is alive as long as its `SideStream`, which is borrowed.
                must(unsafe { fathom_stream_swap(self.0.as_ptr()) });
            }
        }
        // SAFETY: as above.
        must(unsafe { fathom_stream_swap(stream.as_ptr()) });
        let _swapped = Swapped(stream);
        f()
    }
}

impl Drop for SideStream {
    fn drop(&mut self) {
        if let Some(stream) = self.0 {
            // SAFETY: the handle is the shim's and is not used again.
            unsafe { fathom_stream_free(stream.as_ptr()) };
        }
    }
}

impl Event {
    /// Marks all that the current stream of `device` was given so far.
    pub fn record(device: Device) -> Event {
        Event::new(device, false)
    }

    /// The same, of which [`Event::seconds_until`] can ask.
    pub fn record_time(device: Device) -> Event {
        Event::new(device, true)
    }

    fn new(device: Device, timed: bool) -> Event {
        let Device::Cuda(index) = device else { return Event { device: 0, handle: None } };
        let mut event = std::ptr::null_mut();
        // SAFETY: on success the shim hands over an object of its own, freed by `drop`.
        must(unsafe { fathom_event_record(index as i32, timed, &mut event) });
        Event { device: index as i32, handle: NonNull::new(event) }
    }

    /// The device's time between two timed events; waits for the later one. `None` on the CPU.
    pub fn seconds_until(&self, later: &Event) -> Option<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both handles are alive until `drop`, and there is room for the answer.
        must(unsafe {
            let (from, to) = (self.handle?.as_ptr(), later.handle?.as_ptr());
            fathom_event_milliseconds(from, to, &mut milliseconds)
        });
        Some(milliseconds / 1e3)
    }

    /// What the current stream is given from now on begins when the marked work is done. The host does not wait.
    pub fn wait(&self) {
        if let Some(event) = self.handle {
            // SAFETY: the handle is alive until `drop`.
            must(unsafe { fathom_event_wait(self.device, event.as_ptr()) });
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Some(event) = self.handle {
            // SAFETY: the handle is the shim's and is not used again.
            unsafe { fathom_event_free(event.as_ptr()) };
        }
    }
}

/// Copies `from` into `to` on the current stream; the host waits for nothing where its end is page-locked memory.
///
/// # Shapes
///
/// `to` and `from`: the same size and dtype, contiguous, on any devices.
pub fn copy(to: &Tensor, from: &Tensor) {
    // SAFETY: both pointers are to live tensors.
    must(unsafe { fathom_copy(to.as_ptr(), from.as_ptr()) });
}

/// Host memory for what `like` holds, uninitialised; page-locked if `device` is CUDA.
///
/// LibTorch's allocator of page-locked memory takes a power of two of bytes for every tensor.
///
/// # Shapes
///
/// Returns a tensor of the size and dtype of `like`.
pub fn host_empty_like(like: &Tensor, device: Device) -> Tensor {
    let mut out = std::ptr::null_mut();
    // SAFETY: on success the shim hands over a tensor that it allocated with `new`, as tch's own tensors are.
    unsafe {
        must(fathom_host_empty_like(like.as_ptr(), device.is_cuda(), &mut out));
        Tensor::from_ptr(out)
    }
}
