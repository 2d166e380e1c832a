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
fn library_folder() -> Option<PathBuf> {
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
    let symbol = find_symbol(c"libcuda.so.1", c"cuDeviceGetName")?;
    // SAFETY: the symbol is the documented function of the CUDA driver; the buffer's size is given.
    unsafe {
        let get_name: GetName = std::mem::transmute::<*mut c_void, GetName>(symbol);
        let mut buffer = [0 as c_char; 128];
        (get_name(buffer.as_mut_ptr(), 127, index as c_int) == 0)
            .then(|| CStr::from_ptr(buffer.as_ptr()).to_string_lossy().into_owned())
    }
}

fn find_symbol(library: &CStr, name: &CStr) -> Option<*mut c_void> {
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

/// Total memory of a CUDA device, asked of the CUDA runtime before LibTorch's allocator exists.
fn total_memory_before_allocator(index: usize) -> Option<u64> {
    type SetDevice = unsafe extern "C" fn(c_int) -> c_int;
    type GetInfo = unsafe extern "C" fn(*mut usize, *mut usize) -> c_int;
    let set = find_symbol(c"libcudart.so.13", c"cudaSetDevice")?;
    let get = find_symbol(c"libcudart.so.13", c"cudaMemGetInfo")?;
    let (mut free, mut total) = (0usize, 0usize);
    // SAFETY: the documented functions of the CUDA runtime, called with valid pointers.
    unsafe {
        let set: SetDevice = std::mem::transmute::<*mut c_void, SetDevice>(set);
        let get: GetInfo = std::mem::transmute::<*mut c_void, GetInfo>(get);
        (set(index as c_int) == 0 && get(&mut free, &mut total) == 0).then_some(total as u64)
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
    configure_allocator(index, memory_cap)?;
    match load_cuda() {
        Ok(()) if (index as i64) < Cuda::device_count() => Ok(Device::Cuda(index)),
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

/// Tells LibTorch's CUDA allocator how to behave, by the environment variable that it reads when it starts.
fn configure_allocator(index: usize, memory_cap: Option<Bytes>) -> Result<()> {
    const VARIABLE: &str = "PYTORCH_CUDA_ALLOC_CONF";
    let mut options = vec!["expandable_segments:True".to_string()];
    if let Some(cap) = memory_cap
        && let Some(total) = total_memory_before_allocator(index)
    {
        if cap.0 > total {
            bail!("run.memory_cap: expected at most the device's {}, found `{cap}`", Bytes(total));
        }
        options.push(format!("per_process_memory_fraction:{:.9}", cap.0 as f64 / total as f64));
    }
    if std::env::var_os(VARIABLE).is_none() {
        // SAFETY: called by the worker before it starts any thread of its own or LibTorch's CUDA half.
        unsafe { std::env::set_var(VARIABLE, options.join(",")) };
    }
    Ok(())
}
