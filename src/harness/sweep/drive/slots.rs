//! Where runs run: the CPU and each GPU, known by its UUID, with what is taken of each.
//!
//! A run has one device. Several have the same one when the memory that is predicted for them fits side by side; a run of
//! which nothing can be predicted, or that does not fit as it is predicted, has its device alone. A GPU is given to a run by
//! `CUDA_VISIBLE_DEVICES`, so that the run's `cuda` is that one. The CPU is taken by the thread. What other harnesses have of the
//! devices is told by [`super::shares`]; here it is only counted.

use anyhow::{Context, Result, bail};
use fathom_spec::config::{Device as Written, RunConfig};
use fathom_spec::record::RunId;
use fathom_spec::units::Bytes;
use serde::Deserialize;
use std::path::Path;
use std::process::Command;

/// Names a file that describes another machine than this one, as JSON: [`Machine`].
pub const MACHINE_VARIABLE: &str = "FATHOM_MACHINE";

/// What a process takes of a GPU beside what its allocator hands out: the CUDA context and the libraries' workspaces.
const CONTEXT: u64 = 768 << 20;

/// What is there to run on.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Machine {
    pub cores: usize,
    /// Memory of the host that is free.
    pub memory: Bytes,
    #[serde(default)]
    pub gpus: Vec<Gpu>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Gpu {
    pub index: usize,
    /// `GPU-5c1f…`: what the driver calls the card whatever the order.
    pub uuid: String,
    /// Memory of the card that is free.
    pub memory: Bytes,
}

/// Predicts what a run takes of a device that has so many bytes; `None` where that can't be said.
pub type Predict = dyn Fn(&RunConfig, Option<Bytes>) -> Option<Bytes>;

/// A device that was chosen to run on.
#[derive(Debug, Clone, PartialEq)]
pub enum Device {
    Cpu { cores: usize, memory: Bytes },
    Gpu(Gpu),
}

/// Devices, and what is taken of them.
pub struct Slots {
    devices: Vec<Device>,
    predict: Box<Predict>,
    /// By this harness's runs.
    taken: Vec<(RunId, Share)>,
    /// By those of other harnesses, as they were seen last.
    others: Vec<Share>,
}

/// What a run has of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The device, by its place.
    pub(super) device: usize,
    pub(super) memory: u64,
    pub(super) threads: usize,
    pub(super) alone: bool,
}

impl Machine {
    /// This machine, or the one that `FATHOM_MACHINE` describes. `available` is the host's memory that is free.
    ///
    /// # Errors
    ///
    /// When the description can't be read.
    pub fn here(available: Bytes) -> Result<Machine> {
        if let Some(path) = std::env::var_os(MACHINE_VARIABLE) {
            return Machine::read(Path::new(&path));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let query = ["--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"];
        // A machine without the program has no GPU that could be used.
        let answer = Command::new("nvidia-smi").args(query).output();
        let answer = answer.ok().filter(|output| output.status.success());
        let mut gpus =
            gpus(&answer.map_or(String::new(), |output| {
                String::from_utf8_lossy(&output.stdout).into_owned()
            }));
        if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
            gpus.retain(|gpu| visible.split(',').any(|name| gpu.is_called(name)));
        }
        Ok(Machine { cores, memory: available, gpus })
    }

    fn read(path: &Path) -> Result<Machine> {
        let place = path.display();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{MACHINE_VARIABLE}: {place}: can't be read"))?;
        serde_json::from_str(&text).with_context(|| {
            format!("{MACHINE_VARIABLE}: {place}: expected the description of a machine")
        })
    }

    /// The devices of a list: `all` (the GPUs, or the CPU where there is none), `cpu`, a GPU's number, or how its UUID begins.
    ///
    /// # Errors
    ///
    /// When one is not there.
    pub fn choose(&self, names: &[String]) -> Result<Vec<Device>> {
        let cpu = || Device::Cpu { cores: self.cores, memory: self.memory };
        let mut chosen: Vec<Device> = Vec::new();
        for name in names {
            let found = match name.as_str() {
                "all" if self.gpus.is_empty() => vec![cpu()],
                "all" => self.gpus.iter().cloned().map(Device::Gpu).collect(),
                "cpu" => vec![cpu()],
                name => self
                    .gpus
                    .iter()
                    .filter(|g| g.is_called(name))
                    .cloned()
                    .map(Device::Gpu)
                    .collect(),
            };
            if found.is_empty() {
                let there: Vec<String> =
                    self.gpus.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.uuid)).collect();
                let there = if there.is_empty() { "no GPU".into() } else { there.join(", ") };
                bail!(
                    "--devices: expected `all`, `cpu` or a GPU of this machine, found `{name}`\n  help: here: {there}"
                );
            }
            for device in found {
                if !chosen.contains(&device) {
                    chosen.push(device);
                }
            }
        }
        Ok(chosen)
    }
}

/// The lines of `nvidia-smi`: index, UUID, MiB free.
fn gpus(csv: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let mut fields = line.split(',').map(str::trim);
        let (index, uuid) = (fields.next()?.parse().ok()?, fields.next()?.to_string());
        let mib: u64 = fields.next()?.parse().ok()?;
        Some(Gpu { index, uuid, memory: Bytes(mib << 20) })
    };
    csv.lines().filter_map(gpu).collect()
}

impl Gpu {
    fn is_called(&self, name: &str) -> bool {
        let name = name.trim();
        name.parse() == Ok(self.index) || name.starts_with("GPU-") && self.uuid.starts_with(name)
    }
}

impl Slots {
    pub fn new(devices: Vec<Device>, predict: Box<Predict>) -> Slots {
        Slots { devices, predict, taken: Vec::new(), others: Vec::new() }
    }

    /// # Errors
    ///
    /// When a run could never be placed: its `run.device` is not among the devices.
    pub fn check(&self, config: &RunConfig) -> Result<()> {
        let device = config.run.device;
        if let Written::Cuda(index @ 1..) = device {
            bail!(
                "run.device: expected `cuda`, `cpu` or `auto` beside --devices, found `cuda:{index}`\n  help: --devices {index} \
                 gives that card to every run"
            );
        }
        if !self.devices.iter().any(|on| on.suits(device)) {
            bail!(
                "run.device: expected a device that is among --devices, found `{}`\n  help: {}",
                String::from(device),
                if device == Written::Cpu { "add `cpu` to --devices" } else { "--devices all" }
            );
        }
        Ok(())
    }

    /// Where a run can begin now, beside what is there: the device with the fewest runs, and of these the most memory left.
    pub fn place(&self, config: &RunConfig) -> Option<Share> {
        self.place_beside(config, &self.others)
    }

    /// Whether a run that finds no room would find it if it were not for other harnesses.
    pub fn is_kept_out(&self, config: &RunConfig) -> bool {
        !self.others.is_empty() && self.place_beside(config, &[]).is_some()
    }

    fn place_beside(&self, config: &RunConfig, others: &[Share]) -> Option<Share> {
        let share = |(at, device): (usize, &Device)| {
            if !self.suits(device, config) {
                return None;
            }
            let beside: Vec<&Share> = self.of_device(at, others).collect();
            let share = self.share(at, device, config);
            let memory: u64 = beside.iter().map(|share| share.memory).sum();
            let threads: usize = beside.iter().map(|share| share.threads).sum();
            let fits = memory + share.memory <= device.memory().0
                && threads + share.threads <= device.cores()
                && !share.alone
                && beside.iter().all(|other| !other.alone);
            (beside.is_empty() || fits).then_some((
                beside.len(),
                std::cmp::Reverse(device.memory().0.saturating_sub(memory)),
                share,
            ))
        };
        let places = self.devices.iter().enumerate().filter_map(share);
        places.min_by_key(|(runs, left, _)| (*runs, *left)).map(|(.., share)| share)
    }

    fn suits(&self, device: &Device, config: &RunConfig) -> bool {
        let is_gpu = |device: &Device| matches!(device, Device::Gpu(_));
        device.suits(config.run.device)
            // `auto` is a GPU where there is one.
            && (config.run.device != Written::Auto || is_gpu(device) || !self.devices.iter().any(is_gpu))
    }

    fn share(&self, at: usize, device: &Device, config: &RunConfig) -> Share {
        let gpu = matches!(device, Device::Gpu(_));
        let predicted = (self.predict)(config, gpu.then(|| device.memory()));
        let context = if gpu { CONTEXT } else { 0 };
        let memory = predicted.map_or(device.memory().0, |bytes| bytes.0 + context);
        // A run that names no number of threads takes what cores there are.
        let threads = if gpu { 0 } else { config.run.threads.unwrap_or(device.cores()) };
        Share { device: at, memory, threads, alone: predicted.is_none() }
    }

    pub fn take(&mut self, run: RunId, share: Share) {
        self.taken.push((run, share));
    }

    pub fn release(&mut self, run: &RunId) {
        self.taken.retain(|(taken, _)| taken != run);
    }

    /// Takes note of what other harnesses have, each with what was free of the device before anything was placed there.
    pub fn see(&mut self, others: Vec<(Share, Bytes)>) {
        for (share, free) in &others {
            *self.devices[share.device].memory_mut() = *free;
        }
        self.others = others.into_iter().map(|(share, _)| share).collect();
    }

    pub fn has_others(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether nobody has anything of the device at this place.
    pub fn is_empty(&self, at: usize) -> bool {
        self.of_device(at, &self.others).next().is_none()
    }

    /// What this harness's runs and `others` have of the device at this place.
    fn of_device<'s>(&'s self, at: usize, others: &'s [Share]) -> impl Iterator<Item = &'s Share> {
        let own = self.taken.iter().map(|(_, share)| share);
        own.chain(others).filter(move |share| share.device == at)
    }

    /// The places of the devices that nobody has anything of and that a run can have.
    pub fn empty_for(&self, config: &RunConfig) -> Vec<usize> {
        let devices = self.devices.iter().enumerate();
        let found = devices.filter(|(at, d)| self.is_empty(*at) && self.suits(d, config));
        found.map(|(at, _)| at).collect()
    }

    /// Takes over what is free of the devices that nobody has anything of.
    pub fn measure(&mut self, machine: &Machine) {
        for at in 0..self.devices.len() {
            if !self.is_empty(at) {
                continue;
            }
            match &mut self.devices[at] {
                Device::Cpu { memory, .. } => *memory = machine.memory,
                Device::Gpu(gpu) => {
                    let now = machine.gpus.iter().find(|now| now.uuid == gpu.uuid);
                    gpu.memory = now.map_or(gpu.memory, |now| now.memory);
                }
            }
        }
    }

    /// The device at a place.
    pub fn device(&self, at: usize) -> &Device {
        &self.devices[at]
    }

    /// The place of the device that has this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.devices.iter().position(|device| device.name() == name)
    }

    /// What a run's worker is told of where it is.
    pub fn environment(&self, run: &RunId) -> Vec<(&'static str, String)> {
        let share = self.taken.iter().find(|(taken, _)| taken == run);
        let Some((_, share)) = share else { return Vec::new() };
        match &self.devices[share.device] {
            Device::Gpu(gpu) => vec![("CUDA_VISIBLE_DEVICES", gpu.uuid.clone())],
            Device::Cpu { .. } => vec![("CUDA_VISIBLE_DEVICES", String::new())],
        }
    }
}

impl Device {
    fn suits(&self, written: Written) -> bool {
        match (self, written) {
            (_, Written::Auto) => true,
            (Device::Cpu { .. }, written) => written == Written::Cpu,
            (Device::Gpu(_), written) => written != Written::Cpu,
        }
    }

    /// What it is called among all devices of the machine.
    pub(super) fn name(&self) -> &str {
        match self {
            Device::Cpu { .. } => "cpu",
            Device::Gpu(gpu) => &gpu.uuid,
        }
    }

    pub(super) fn memory(&self) -> Bytes {
        match self {
            Device::Cpu { memory, .. } => *memory,
            Device::Gpu(gpu) => gpu.memory,
        }
    }

    fn memory_mut(&mut self) -> &mut Bytes {
        match self {
            Device::Cpu { memory, .. } => memory,
            Device::Gpu(gpu) => &mut gpu.memory,
        }
    }

    fn cores(&self) -> usize {
        match self {
            Device::Cpu { cores, .. } => *cores,
            Device::Gpu(_) => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_spec::config::written::Written as Tree;

    const SMI: &str = "0, GPU-aaaa-1, 24000\n1, GPU-bbbb-2, 80000\nno GPU of ours\n";

    fn machine() -> Machine {
        Machine { cores: 4, memory: Bytes::gib(16), gpus: gpus(SMI) }
    }

    fn config(device: &str, threads: usize, length: u64) -> RunConfig {
        let text = format!(
            "model: {{path: m}}\ndata: {{corpus: c}}\ntrain: {{sequence_length: {length}, total_tokens: 4K, learning_rate: 1e-5}}\n\
             run: {{device: {device}, threads: {threads}}}\n"
        );
        RunConfig::from_written(&Tree::parse("run.yaml", &text).unwrap()).unwrap()
    }

    /// A run takes a GiB for each thousand tokens of its sequence; of 99,000 nothing can be said.
    fn slots(names: &[&str]) -> Slots {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let predict = |config: &RunConfig, _: Option<Bytes>| {
            let length = config.train.sequence_length as u64;
            (length != 99_000).then(|| Bytes::gib(length / 1000))
        };
        Slots::new(machine().choose(&names).unwrap(), Box::new(predict))
    }

    /// Places runs until one has to wait; the devices that they got.
    fn placed(slots: &mut Slots, runs: &[RunConfig]) -> Vec<String> {
        let mut devices = Vec::new();
        for run in runs {
            let Some(share) = slots.place(run) else { break };
            let id = RunId(devices.len().to_string());
            slots.take(id.clone(), share);
            devices.push(slots.environment(&id)[0].1.clone());
        }
        devices
    }

    #[test]
    fn runs_share_a_card_as_far_as_they_fit() {
        let run = |length| config("cuda", 1, length);
        let mut both = slots(&["all"]);
        // 22 GiB and 0.75 fit 23.4 GiB once and 78 three times.
        let got = placed(&mut both, &vec![run(22_000); 9]);
        assert_eq!(got, ["GPU-bbbb-2", "GPU-aaaa-1", "GPU-bbbb-2", "GPU-bbbb-2"]);
        both.release(&RunId("1".into()));
        assert!(both.place(&run(22_000)).is_some(), "what ended makes room");
        assert_eq!(placed(&mut slots(&["0"]), &vec![run(30_000); 3]).len(), 1, "alone it may try");
        assert_eq!(placed(&mut slots(&["0"]), &vec![run(1000); 99]).len(), 13);
        assert_eq!(placed(&mut slots(&["all"]), &vec![run(99_000); 9]).len(), 2, "one a card");
        assert_eq!(placed(&mut slots(&["1"]), &[run(99_000), run(1000)]).len(), 1);
        assert_eq!(placed(&mut slots(&["1"]), &[run(1000), run(99_000)]).len(), 1);
    }

    #[test]
    fn what_other_harnesses_have_is_counted() {
        let run = |length| config("cuda", 1, length);
        let other = |device, gib, alone| {
            let share = Share { device, memory: Bytes::gib(gib).0, threads: 0, alone };
            (share, Bytes::gib(30))
        };
        let mut one = slots(&["0"]);
        one.see(vec![other(0, 20, false)]);
        assert_eq!(one.place(&run(8000)).map(|share| share.memory), Some((8 << 30) + CONTEXT));
        assert!(one.place(&run(10_000)).is_none());
        assert!(one.is_kept_out(&run(10_000)));
        assert!(one.place(&run(99_000)).is_none(), "of which nothing can be said");
        one.see(vec![other(0, 1, true)]);
        assert!(one.place(&run(1000)).is_none(), "it has the card alone");
        one.see(Vec::new());
        assert!(one.place(&run(10_000)).is_some());
        one.take(RunId("own".into()), one.place(&run(30_000)).unwrap());
        one.see(vec![other(0, 1, false)]);
        assert!(!one.is_kept_out(&run(10_000)), "its own run does so");

        // Of two cards the one that others leave alone.
        let mut both = slots(&["all"]);
        both.see(vec![other(1, 1, false)]);
        assert_eq!(both.empty_for(&run(1000)), [0]);
        assert_eq!(placed(&mut both, &[run(1000)]), ["GPU-aaaa-1"]);
        assert!(both.empty_for(&run(1000)).is_empty());
        // What is free is read of a device that nobody has anything of.
        both.release(&RunId("0".into()));
        let mut now = machine();
        now.gpus.iter_mut().for_each(|gpu| gpu.memory = Bytes::gib(5));
        both.measure(&now);
        assert_eq!([0, 1].map(|at| both.device(at).memory()), [Bytes::gib(5), Bytes::gib(30)]);
    }

    #[test]
    fn the_cpu_is_taken_by_the_thread() {
        assert_eq!(placed(&mut slots(&["cpu"]), &vec![config("cpu", 2, 1000); 9]), ["", ""]);
        assert_eq!(placed(&mut slots(&["cpu"]), &vec![config("cpu", 1, 7000); 9]).len(), 2);
        // `auto` is a GPU where there is one.
        let got = placed(&mut slots(&["cpu", "GPU-a"]), &vec![config("auto", 1, 20_000); 9]);
        assert_eq!(got, ["GPU-aaaa-1"]);
    }

    #[test]
    fn devices_are_named_as_they_are() {
        let choose = |name: &str| machine().choose(&[name.to_string()]);
        assert_eq!(
            choose("all").unwrap(),
            choose("0").unwrap().into_iter().chain(choose("GPU-b").unwrap()).collect::<Vec<_>>()
        );
        let error = choose("2").unwrap_err().to_string();
        assert!(
            error.contains("found `2`\n  help: here: 0 (GPU-aaaa-1), 1 (GPU-bbbb-2)"),
            "{error}"
        );
        let bare = Machine { gpus: Vec::new(), ..machine() };
        assert!(matches!(
            bare.choose(&["all".into()]).unwrap()[..],
            [Device::Cpu { cores: 4, .. }]
        ));
        let error = slots(&["all"]).check(&config("cpu", 1, 1000)).unwrap_err().to_string();
        assert!(error.contains("found `cpu`\n  help: add `cpu`"), "{error}");
        let error = slots(&["all"]).check(&config("cuda:1", 1, 1000)).unwrap_err().to_string();
        assert!(error.contains("found `cuda:1`"), "{error}");
    }
}
