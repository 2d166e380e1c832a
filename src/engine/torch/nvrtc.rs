//! CUDA kernels of our own: compiled from source on the machine that runs them, launched on LibTorch's stream.
//!
//! NVRTC comes with LibTorch's CUDA half and the driver with the device: neither is linked to, both are opened by name.

use super::device::{library_folder, symbol_of};
use super::{fathom_stream_native, must};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use tch::{Device, Kind, Tensor};

/// Compiled kernels, by name.
#[derive(Debug)]
pub struct Kernels {
    launch: Launch,
    functions: HashMap<&'static str, *mut c_void>,
}

// SAFETY: the handles are of the process's one CUDA context, and the driver takes calls from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    Pointer(*mut c_void),
    Long(i64),
    Seed(u64),
    Int(i32),
    Float(f32),
}

/// How many blocks of how many threads.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub blocks: (u32, u32),
    pub threads: u32,
}

type Launch = unsafe extern "C" fn(
    *mut c_void,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
    *mut c_void,
    *mut *mut c_void,
    *mut *mut c_void,
) -> c_int;

/// Opens a library and finds functions in it and in what it was linked with.
struct Library<'n>(&'n CStr);

impl Library<'_> {
    /// # Safety
    ///
    /// `F` is the type of the function.
    unsafe fn function<F: Copy>(&self, name: &CStr) -> Result<F, String> {
        let symbol = symbol_of(self.0, name).ok_or_else(|| {
            format!("{} has no {}", self.0.to_string_lossy(), name.to_string_lossy())
        })?;
        // SAFETY: the caller's promise; function pointers are of one size.
        Ok(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&symbol) })
    }
}

impl Argument {
    /// The first element of a tensor.
    pub fn of(tensor: &Tensor) -> Argument {
        Argument::Pointer(tensor.data_ptr())
    }

    /// As the driver reads it: little-endian, from the first byte on.
    fn bits(&self) -> u64 {
        match *self {
            Argument::Pointer(pointer) => pointer as u64,
            Argument::Long(value) => value as u64,
            Argument::Seed(value) => value,
            Argument::Int(value) => u64::from(value as u32),
            Argument::Float(value) => u64::from(value.to_bits()),
        }
    }
}

impl Kernels {
    /// Compiles `source` for `device`, and finds the kernels called `names` in it.
    ///
    /// # Errors
    ///
    /// When there is no CUDA device, no compiler, or the source has a mistake: in one line.
    pub fn compile(
        source: &str,
        names: &[&'static str],
        device: Device,
    ) -> Result<Kernels, String> {
        let Device::Cuda(index) = device else { return Err("the device is not CUDA".into()) };
        // A first allocation: the context exists from here on.
        drop(Tensor::empty([1], (Kind::Float, device)));
        let image = compile(source, &architecture(index as c_int)?)?;
        let driver = Library(c"libcuda.so.1");
        type Load = unsafe extern "C" fn(*mut *mut c_void, *const c_void) -> c_int;
        type Find = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
        // SAFETY: documented functions of the CUDA driver with their types; the image lives during the call, the module for
        // ever, and every output has room.
        unsafe {
            let load: Load = driver.function(c"cuModuleLoadData")?;
            let find: Find = driver.function(c"cuModuleGetFunction")?;
            let launch: Launch = driver.function(c"cuLaunchKernel")?;
            let mut module = std::ptr::null_mut();
            accepted("cuModuleLoadData", load(&mut module, image.as_ptr().cast()))?;
            let mut functions = HashMap::new();
            for &name in names {
                let c_name = CString::new(name).map_err(|error| error.to_string())?;
                let mut function = std::ptr::null_mut();
                accepted(name, find(&mut function, module, c_name.as_ptr()))?;
                functions.insert(name, function);
            }
            Ok(Kernels { launch, functions })
        }
    }

    /// Starts a kernel on the current stream of `device`.
    ///
    /// # Safety
    ///
    /// The arguments are those that the kernel declares, in order, and every pointer is to memory of `device` that is as
    /// large as the kernel expects.
    ///
    /// # Panics
    ///
    /// When there is no such kernel, or the driver refuses.
    pub unsafe fn launch(&self, name: &str, grid: Grid, arguments: &[Argument], device: Device) {
        let Device::Cuda(index) = device else { panic!("{name}: expected a CUDA device") };
        let function = self.functions[name];
        let mut stream = std::ptr::null_mut();
        let mut values: Vec<u64> = arguments.iter().map(Argument::bits).collect();
        let mut places: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let Grid { blocks: (x, y), threads } = grid;
        // SAFETY: the caller's promise for the arguments; the stream is LibTorch's own.
        let answer = unsafe {
            must(fathom_stream_native(index as c_int, &mut stream));
            let none = std::ptr::null_mut();
            let places = places.as_mut_ptr();
            (self.launch)(function, x, y, 1, threads, 1, 1, 0, stream, places, none)
        };
        accepted(name, answer).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn accepted(what: &str, answer: c_int) -> Result<(), String> {
    match answer {
        0 => Ok(()),
        2 => Err(format!("{what}: CUDA out of memory")),
        _ => Err(format!("{what}: the CUDA driver answers {answer}")),
    }
}

/// `sm_90`, or whatever the device is.
fn architecture(index: c_int) -> Result<String, String> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let mut parts = [0; 2];
    // SAFETY: a documented function of the CUDA driver with its type, and room for its answer.
    unsafe {
        let attribute: Attribute = Library(c"libcuda.so.1").function(c"cuDeviceGetAttribute")?;
        for (part, which) in parts.iter_mut().zip([MAJOR, MINOR]) {
            accepted("cuDeviceGetAttribute", attribute(part, which, index))?;
        }
    }
    Ok(format!("sm_{}{}", parts[0], parts[1]))
}

/// The machine code of `source`.
fn compile(source: &str, architecture: &str) -> Result<Vec<u8>, String> {
    type Program = *mut c_void;
    type Create = unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int;
    type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
    type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
    type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
    type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

    // LibTorch's own door to NVRTC knows where it lies.
    let folder = library_folder().ok_or("libtorch_cpu.so was not found")?;
    let path = folder.join("libcaffe2_nvrtc.so");
    let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
    let nvrtc = Library(&path);
    let source = CString::new(source).map_err(|error| error.to_string())?;
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".into()]
        .map(|option| CString::new(option).unwrap_or_default());
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();

    // SAFETY: documented functions of NVRTC with their types; strings end in NUL, and buffers are as large as it says.
    unsafe {
        let create: Create = nvrtc.function(c"nvrtcCreateProgram")?;
        let compile: Compile = nvrtc.function(c"nvrtcCompileProgram")?;
        let log_size: Size = nvrtc.function(c"nvrtcGetProgramLogSize")?;
        let log: Get = nvrtc.function(c"nvrtcGetProgramLog")?;
        let image_size: Size = nvrtc.function(c"nvrtcGetCUBINSize")?;
        let image: Get = nvrtc.function(c"nvrtcGetCUBIN")?;
        let destroy: Destroy = nvrtc.function(c"nvrtcDestroyProgram")?;
        let read = |size: Size, get: Get, program: Program| {
            let mut bytes = 0;
            size(program, &mut bytes);
            let mut buffer = vec![0u8; bytes];
            get(program, buffer.as_mut_ptr().cast());
            buffer
        };

        let mut program = std::ptr::null_mut();
        let none = std::ptr::null();
        accepted(
            "nvrtcCreateProgram",
            create(&mut program, source.as_ptr(), c"kernels.cu".as_ptr(), 0, none, none),
        )?;
        let answer = compile(program, options.len() as c_int, options.as_ptr());
        let result = match answer {
            0 => Ok(read(image_size, image, program)),
            _ => {
                let said = read(log_size, log, program);
                let said = String::from_utf8_lossy(&said);
                let first = said.lines().find(|line| line.contains("error"));
                let first = first.unwrap_or("NVRTC says no more").trim_end_matches('\0');
                Err(format!("the kernels can't be compiled: {first}"))
            }
        };
        destroy(&mut program);
        result
    }
}
