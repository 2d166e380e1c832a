//! Which device: CUDA is opened at run time, so that one binary serves machines with and without it.

use super::{checked, fathom_cuda_free_total};
use anyhow::{Result, bail};
use fathom_spec::config;
use fathom_spec::units::Bytes;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;
use tch::{Cuda, Device};

/// A CUDA device as found.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    pub index: usize,
    pub name: String,
    pub free: Bytes,
    pub total: Bytes,
}

/// The folder that `libtorch_cpu.so` was loaded from.
pub(super) fn library_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().find_map(|line| {
        let path = line.split_whitespace().nth(5)?;
        path.ends_with("/libtorch_cpu.so").then(|| PathBuf::from(path))
    })?;
    Some(path.parent()?.to_path_buf())
}

/// Loads `libtorch_cuda.so` from beside `libtorch_cpu.so`, once. `Err` says why CUDA can't be had.
fn load_cuda() -> &'static Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(|| {
        let folder =
            library_folder().ok_or("libtorch_cpu.so was not found among the loaded libraries")?;
        let path = folder.join("libtorch_cuda.so");
        if !path.is_file() {
            return Err("this LibTorch holds no libtorch_cuda.so".into());
        }
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: plain dlopen; its registration code runs under LibTorch's own locks, before any CUDA call of ours.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if handle.is_null() {
            // SAFETY: dlerror returns a string that is valid until the next call.
            let error = unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned();
            return Err(format!("libtorch_cuda.so can't be loaded: {error}"));
        }
        if !Cuda::is_available() {
            return Err("LibTorch sees no CUDA device".into());
        }
        Ok(())
    })
}

/// What is missing for CUDA; `None` where CUDA works.
pub fn cuda_missing() -> Option<String> {
    load_cuda().clone().err()
}

/// Every CUDA device, in CUDA's order; none where CUDA is missing.
pub fn cuda_devices() -> Vec<DeviceInfo> {
    if load_cuda().is_err() {
        return Vec::new();
    }
    (0..Cuda::device_count() as usize)
        .map(|index| {
            let mut out = [0i64; 2];
            // SAFETY: `out` has room for the two numbers. A failure leaves zeros.
            let _ = checked(unsafe { fathom_cuda_free_total(index as c_int, out.as_mut_ptr()) });
            let (free, total) = (Bytes(out[0] as u64), Bytes(out[1] as u64));
            DeviceInfo { index, name: cuda_name(index).unwrap_or_default(), free, total }
        })
        .collect()
}

/// The driver's name of a device (`NVIDIA H100 80GB HBM3`), from the kernel driver's own files.
fn cuda_name(index: usize) -> Option<String> {
    // cuDeviceGetName needs only the driver library, which libtorch_cuda.so has loaded.
    type GetName = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let symbol = symbol_of(c"libcuda.so.1", c"cuDeviceGetName")?;
    // SAFETY: the symbol is the documented function of the CUDA driver; the buffer's size is given.
    unsafe {
        let get_name: GetName = std::mem::transmute::<*mut c_void, GetName>(symbol);
        let mut buffer = [0 as c_char; 128];
        (get_name(buffer.as_mut_ptr(), 127, index as c_int) == 0)
            .then(|| CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned())
    }
}

pub(super) fn symbol_of(library: &CStr, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlopen and dlsym with NUL-terminated names; the library stays loaded for the life of the process.
    unsafe {
        let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOW);
        if handle.is_null() {
            return None;
        }
        let symbol = libc::dlsym(handle, name.as_ptr());
        (!symbol.is_null()).then_some(symbol)
    }
}

/// Makes a device the thread's current one, as every operation of LibTorch does for its own duration. Answers whether it is.
fn make_current(index: usize) -> bool {
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    let Some(set) = symbol_of(c"libcudart.so.13", c"cudaSetDevice") else { return false };
    // SAFETY: the documented function of the CUDA runtime.
    unsafe {
        let set: SetDevice = std::mem::transmute::<*mut c_void, SetDevice>(set);
        set(index as c_int) == 0
    }
}

/// Total memory of a CUDA device, asked of the CUDA runtime before LibTorch's allocator exists.
fn total_memory_before_allocator(index: usize) -> Option<u64> {
    type GetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let get = symbol_of(c"libcudart.so.13", c"cudaMemGetInfo")?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the documented function of the CUDA runtime, called with valid pointers.
    unsafe {
        let get: GetInfo = std::mem::transmute::<*mut c_void, GetInfo>(get);
        (make_current(index) && get(&mut free, &mut total) == 0).then_some(total as u64)
    }
}

/// Opens the device that a configuration names, with the allocator capped at `memory_cap` bytes on CUDA.
///
/// Call it first of all: the cap is read once, when LibTorch's CUDA half starts.
///
/// # Errors
///
/// When a CUDA device is named and can't be had, or the cap is more than the device holds.
pub fn open_device(wanted: config::Device, memory_cap: Option<Bytes>) -> Result<Device> {
    let index = match wanted {
        config::Device::Cpu => return Ok(Device::Cpu),
        config::Device::Auto => 0,
        config::Device::Cuda(index) => index,
    };
    let capped = configure_allocator(index, memory_cap)?;
    match load_cuda() {
        Ok(()) if memory_cap.is_some() && !capped => bail!(
            "run.memory_cap: expected to set it by {ALLOCATOR_VARIABLE}, found that it can't be: {}\n  \
             help: unset {ALLOCATOR_VARIABLE}, or leave run.memory_cap out",
            match env_options().contains(FRACTION) {
                true => "the variable holds a fraction of its own",
                false => "the CUDA runtime does not say how much memory the device has",
            }
        ),
        Ok(()) if (index as i64) < Cuda::device_count() => {
            let _ = ALLOCATOR_CAP.set(memory_cap);
            // Kernels of our own are loaded into the current device's context, and started there. One that can't be made
            // current fails at its first use.
            make_current(index);
            Ok(Device::Cuda(index))
        }
        Ok(()) => bail!(
            "run.device: expected one of {} CUDA devices, found `cuda:{index}`",
            Cuda::device_count()
        ),
        Err(_) if wanted == config::Device::Auto => Ok(Device::Cpu),
        Err(why) => bail!(
            "run.device: expected a CUDA device, found none: {why}\n  help: set run.device: cpu"
        ),
    }
}

/// The options of LibTorch's CUDA allocator, and the older name that they have.
const ALLOCATOR_VARIABLE: &str = "PYTORCH_CUDA_ALLOC_CONF";
const ALLOCATOR_VARIABLE_NEW: &str = "PYTORCH_ALLOC_CONF";
const FRACTION: &str = "per_process_memory_fraction";
const EXPANDABLE: &str = "expandable_segments";

static ALLOCATOR_CAP: OnceLock<Option<Bytes>> = OnceLock::new();

/// The cap that the CUDA allocator was started with, in bytes; `None` without one.
pub fn allocator_cap() -> Option<u64> {
    ALLOCATOR_CAP.get().copied().flatten().map(|cap| cap.0)
}

/// What the environment says to the allocator.
fn env_options() -> String {
    let names = [ALLOCATOR_VARIABLE_NEW, ALLOCATOR_VARIABLE];
    names.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default()
}

/// Tells LibTorch's CUDA allocator how to behave, by the environment variable that it reads when it starts: what stands
/// there already stays. Answers whether the cap is set.
fn configure_allocator(index: usize, memory_cap: Option<Bytes>) -> Result<bool> {
    let total = memory_cap.and_then(|_| total_memory_before_allocator(index));
    if let (Some(cap), Some(total)) = (memory_cap, total)
        && cap.0 > total
    {
        bail!("run.memory_cap: expected at most the device's {}, found `{cap}`", Bytes(total));
    }
    let fraction = memory_cap.zip(total).map(|(cap, total)| cap.0 as f64 / total as f64);
    let (options, capped) = allocator_options(&env_options(), fraction);
    for name in [ALLOCATOR_VARIABLE, ALLOCATOR_VARIABLE_NEW] {
        if name == ALLOCATOR_VARIABLE || std::env::var_os(name).is_some() {
            // SAFETY: called by the worker before it starts any thread of its own or LibTorch's CUDA half.
            unsafe { std::env::set_var(name, &options) };
        }
    }
    Ok(capped)
}

/// The allocator's options with ours beside the `given` ones, and whether `fraction` is among them.
fn allocator_options(given: &str, fraction: Option<f64>) -> (String, bool) {
    let mut options: Vec<String> =
        given.split(',').map(str::trim).filter(|o| !o.is_empty()).map(str::to_string).collect();
    if !given.contains(EXPANDABLE) {
        options.push(format!("{EXPANDABLE}:True"));
    }
    let fraction = fraction.filter(|_| !given.contains(FRACTION));
    options.extend(fraction.map(|fraction| format!("{FRACTION}:{fraction:.9}")));
    (options.join(","), fraction.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_set_beside_the_options_of_the_shell_or_not_at_all() {
        let options = |given, fraction| allocator_options(given, fraction);
        assert_eq!(options("", None), ("expandable_segments:True".into(), false));
        let beside = "expandable_segments:False,per_process_memory_fraction:0.250000000";
        assert_eq!(options("expandable_segments:False", Some(0.25)), (beside.into(), true));
        let own = "per_process_memory_fraction:0.5";
        let kept = "per_process_memory_fraction:0.5,expandable_segments:True";
        assert_eq!(options(own, Some(0.25)), (kept.into(), false));
    }
}
