//! What a run has to live in, as the arithmetic of [`fathom_spec::plan`] wants it: totals, so that the same machine always
//! gives the same answer; and what the machine calls itself.

use super::device::cuda_devices;
use fathom_spec::plan::{Machine, Speed};
use fathom_spec::units::Bytes;
use tch::Device;

/// The machine with `device` opened under `memory_cap`.
pub fn machine(device: Device, memory_cap: Option<Bytes>) -> Machine {
    let host_memory = host_memory();
    let info = match device {
        Device::Cuda(index) => cuda_devices().into_iter().find(|info| info.index == index),
        _ => None,
    };
    let total = info.as_ref().map_or(host_memory, |info| info.total);
    let name = info.as_ref().map_or("", |info| &info.name);
    Machine {
        cuda: device.is_cuda(),
        device_memory: memory_cap.map_or(total, |cap| cap.min(total)),
        host_memory,
        speed: Speed::of_device(name, device.is_cuda()),
    }
}

/// The host's memory: the machine's, or less where the process is kept to less.
pub fn host_memory() -> Bytes {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = text.lines().find_map(|line| {
        let kib: u64 = line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024)
    });
    // Of the two versions of control groups, where the process is at their root (as in a container).
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |path: &&str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = limits.iter().filter_map(limit).min();
    Bytes(total.unwrap_or(u64::MAX).min(limit.unwrap_or(u64::MAX)))
}

/// How a device is written: `cuda:0`, `cpu`.
pub fn device_text(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// The device's own name: the GPU's, or the processor's model.
pub fn device_name(device: Device) -> String {
    if let Device::Cuda(index) = device {
        let found = cuda_devices().into_iter().find(|info| info.index == index);
        return found.map(|info| info.name).unwrap_or_default();
    }
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or("CPU".into(), |(_, name)| name.trim().to_string())
}

/// The version of the NVIDIA kernel driver.
pub fn driver_version() -> Option<String> {
    let text = std::fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    let words = text.lines().next()?.split_whitespace();
    words
        .into_iter()
        .find(|word| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit()))
        .map(str::to_string)
}
