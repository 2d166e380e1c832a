//! What an error or a panic comes to: running out of memory is an ending of its own.

use crate::torch;
use crate::train::Progress;
use fathom_spec::record::EventKind;
use fathom_spec::units::Bytes;
use tch::Device;

pub(super) fn memory_event(step: u64, phase: &str, device: Device) -> EventKind {
    let memory = torch::memory(device);
    EventKind::Memory {
        step,
        phase: phase.to_string(),
        allocated: memory.allocated,
        reserved: memory.reserved,
        peak_allocated: memory.peak_allocated,
        peak_reserved: memory.peak_reserved,
    }
}

/// What LibTorch and its libraries say when memory runs out. cuBLAS and cuDNN allocate past LibTorch's own allocator.
const OUT_OF_MEMORY: [&str; 5] = [
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
];

/// Classifies an error: running out of memory is an ending of its own.
pub(super) fn failure(message: &str, progress: &Progress) -> EventKind {
    let (step, phase) = (progress.step.get(), progress.phase.get().to_string());
    if !OUT_OF_MEMORY.iter().any(|words| message.contains(words)) {
        return EventKind::Failed { error: without_frames(message) };
    }
    let asked = quantity_after(message, "Tried to allocate ")
        .or_else(|| quantity_after(message, "tried to allocate "));
    // Under a cap the card's own memory says nothing: what counts is what the allocator may still hand out.
    let allowed = quantity_before(message, " allowed");
    let used = quantity_before(message, " is allocated by PyTorch")
        .map(|used| used + quantity_before(message, " is reserved by PyTorch").unwrap_or(0));
    let free = match (allowed, used) {
        (Some(allowed), Some(used)) => Some(allowed.saturating_sub(used)),
        _ => quantity_before(message, " is free").or_else(free_resident),
    };
    let total = allowed.or_else(|| quantity_after(message, "total capacity of "));
    let bytes =
        |n: Option<u64>| n.map_or("an unknown amount".to_string(), |n| Bytes(n).to_string());
    let message = format!("asked for {}, {} free of {}", bytes(asked), bytes(free), bytes(total));
    EventKind::OutOfMemory { step, phase, asked, free, total, message }
}

/// What a panic has to say, in one line.
pub fn panicked(panic: &(dyn std::any::Any + Send)) -> String {
    match failure(&panic_message(panic), &Progress::default()) {
        EventKind::OutOfMemory { message, .. } => {
            format!("out of memory: {message}\n  help: evaluate shorter lengths, or in bfloat16")
        }
        EventKind::Failed { error } => error,
        other => format!("{other:?}"),
    }
}

/// What the process may still allocate under its limit; `None` without one.
fn free_resident() -> Option<u64> {
    let limit = torch::data_limit()?;
    Some(limit.saturating_sub(torch::data_in_use()))
}

/// An error of LibTorch without its C++ stack, which says nothing to who reads the ending.
fn without_frames(message: &str) -> String {
    let message =
        message.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(message);
    let end = message
        .find("\\nException raised from")
        .or_else(|| message.find("\nException raised from"));
    message[..end.unwrap_or(message.len())].trim().to_string()
}

/// `2.10 GiB` or `1234 bytes` after `label`, in bytes.
fn quantity_after(text: &str, label: &str) -> Option<u64> {
    let (_, rest) = text.split_once(label)?;
    let mut words = rest.split_whitespace();
    parse_quantity(words.next()?, words.next()?)
}

/// `512.00 MiB` before `label`, in bytes.
fn quantity_before(text: &str, label: &str) -> Option<u64> {
    let (before, _) = text.split_once(label)?;
    let mut words = before.split_whitespace().rev();
    let unit = words.next()?;
    parse_quantity(words.next()?, unit)
}

fn parse_quantity(number: &str, unit: &str) -> Option<u64> {
    let unit = unit.trim_end_matches(|c: char| !c.is_ascii_alphabetic());
    let factor: u64 = match unit {
        "bytes" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * factor as f64) as u64)
}

pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panicked without a message")
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_says_what_was_asked_and_what_was_free() {
        let progress = Progress::default();
        progress.step.set(3);
        progress.phase.set("forward_backward");
        let cuda = "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.25 GiB of which 512.00 MiB is free. Process 1 has";
        let EventKind::OutOfMemory { step, asked, free, total, .. } = failure(cuda, &progress)
        else {
            panic!("not classified as out of memory");
        };
        assert_eq!((step, asked, free), (3, Some(5 << 29), Some(512 << 20)));
        assert_eq!(total, Some((79.25 * f64::from(1 << 30)) as u64));

        let capped = "CUDA out of memory. Tried to allocate 384.00 MiB. GPU 0 has a total capacity of 139.80 GiB of which 131.33 GiB is free. Including non-PyTorch memory, this process has 8.47 GiB memory in use. 8.00 GiB allowed; Of the allocated memory 7.50 GiB is allocated by PyTorch, and 256.00 MiB is reserved by PyTorch but unallocated.";
        let EventKind::OutOfMemory { free, total, .. } = failure(capped, &progress) else {
            panic!("not classified as out of memory");
        };
        assert_eq!((free, total), (Some(256 << 20), Some(8 << 30)));

        let cpu = "[enforce fail at alloc_cpu.cpp:129] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes. Error code 12";
        let EventKind::OutOfMemory { asked, .. } = failure(cpu, &progress) else {
            panic!("not classified as out of memory");
        };
        assert_eq!(asked, Some(4096));
        for other in ["std::bad_alloc", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `c`"] {
            assert!(matches!(failure(other, &progress), EventKind::OutOfMemory { .. }), "{other}");
        }
        assert!(matches!(failure("no such file", &progress), EventKind::Failed { .. }));
    }
}
