//! Memory as PyTorch counts it: *allocated* is what tensors hold, *reserved* what the allocator took from the device.
//!
//! On the CPU both are the process's resident memory, which is what a laptop runs out of.

use super::{checked, fathom_cuda_empty_cache, fathom_cuda_memory, fathom_cuda_reset_peak};
use anyhow::{Context, Result};
use fathom_spec::units::Bytes;
use tch::Device;

/// Bytes in use now, and the most since the peak was last reset.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub allocated: u64,
    pub peak_allocated: u64,
    pub reserved: u64,
    pub peak_reserved: u64,
}

/// The counters of `device`.
pub fn memory(device: Device) -> Memory {
    match device {
        Device::Cuda(index) => {
            let mut out = [0i64; 4];
            // SAFETY: `out` has room for the four numbers. A failure leaves zeros.
            let _ = checked(unsafe { fathom_cuda_memory(index as i32, out.as_mut_ptr()) });
            let [allocated, peak_allocated, reserved, peak_reserved] = out.map(|n| n as u64);
            Memory { allocated, peak_allocated, reserved, peak_reserved }
        }
        _ => {
            let (now, peak) = (status_bytes("VmRSS:"), status_bytes("VmHWM:"));
            Memory { allocated: now, peak_allocated: peak, reserved: now, peak_reserved: peak }
        }
    }
}

/// Starts a new peak at what is in use now.
pub fn reset_peak(device: Device) {
    match device {
        Device::Cuda(index) => {
            // SAFETY: no pointers are passed. A device without counters has no peak to reset.
            let _ = checked(unsafe { fathom_cuda_reset_peak(index as i32) });
        }
        // Writing 5 resets the high-water mark (proc(5)); where that is not allowed the peak stays the process's.
        _ => drop(std::fs::write("/proc/self/clear_refs", "5")),
    }
}

/// Gives the allocator's unused memory back to the device.
pub fn empty_cache(device: Device) {
    if device.is_cuda() {
        // SAFETY: no pointers are passed.
        let _ = checked(unsafe { fathom_cuda_empty_cache() });
    }
}

/// The limit that [`limit_resident_memory`] set, in bytes of writable private memory; `None` without one.
pub fn data_limit() -> Option<u64> {
    let mut limits = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid struct is passed.
    let answer = unsafe { libc::getrlimit(libc::RLIMIT_DATA, &mut limits) };
    (answer == 0 && limits.rlim_cur != libc::RLIM_INFINITY).then_some(limits.rlim_cur)
}

/// Writable private memory in use, in bytes: what [`data_limit`] limits.
pub fn data_in_use() -> u64 {
    status_bytes("VmData:")
}

/// A line of /proc/self/status, in bytes.
fn status_bytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Caps this process's memory at `cap` resident bytes: allocations past it fail as on a machine that is full.
///
/// The kernel has no limit on resident memory. It has one on writable private memory (`RLIMIT_DATA`), so what is left
/// until `cap` is added to what is mapped now; memory that is mapped and never touched counts against the cap.
///
/// # Errors
///
/// When more than `cap` is resident already, or the kernel refuses.
pub fn limit_resident_memory(cap: Bytes) -> Result<()> {
    let resident = status_bytes("VmRSS:");
    let left = cap.0.checked_sub(resident).with_context(|| {
        format!(
            "run.memory_cap: expected more than the {} in use at the start, found `{cap}`",
            Bytes(resident)
        )
    })?;
    let limit = status_bytes("VmData:") + left;
    let limits = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: a valid struct is passed.
    let answer = unsafe { libc::setrlimit(libc::RLIMIT_DATA, &limits) };
    match answer {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error())
            .context("run.memory_cap: the kernel refused the limit"),
    }
}
