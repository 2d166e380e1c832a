//! `fathom plan`: what a run will take, before it is started. The same numbers stand beside the points of `fathom sweep plan`.

use super::exit;
use super::sweep::{Settings, template_folders};
use crate::run::find_worker;
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use fathom_spec::config::{Device, Engine, ModelConfig, RunConfig, written};
use fathom_spec::plan::{self, Machine, Place, Prediction, Speed};
use fathom_spec::units::{Bytes, Tokens, format_number, format_seconds};
use serde_json::{Value, json};
use std::cell::OnceCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Args)]
pub struct PlanArgs {
    /// The configuration
    file: PathBuf,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    machine: MachineArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The machine to plan for, where it is not this one.
#[derive(Args, Clone, Default)]
pub struct MachineArgs {
    /// Memory of the device to plan for: 24GiB
    #[arg(long, value_name = "BYTES")]
    device_memory: Option<Bytes>,
    /// Memory of its host
    #[arg(long, value_name = "BYTES")]
    host_memory: Option<Bytes>,
}

impl MachineArgs {
    /// This machine, with a device of so much memory where one is given.
    pub fn with_device(device_memory: Option<Bytes>) -> MachineArgs {
        MachineArgs { device_memory, host_memory: None }
    }
}

/// Predicts runs, and asks the engine each thing at most once.
#[derive(Default)]
pub struct Planner {
    machine: MachineArgs,
    devices: OnceCell<Vec<Value>>,
    shapes: HashMap<String, ModelConfig>,
}

/// Carries out `fathom plan`.
///
/// # Errors
///
/// For mistakes in the configuration, and when the model's shape can't be read.
pub fn run(args: &PlanArgs) -> Result<u8> {
    let mut tree = written::load(&args.file, &template_folders())?;
    for (key, value) in args.settings.parse()? {
        tree.set(&key, value)?;
    }
    let config = RunConfig::from_written(&tree)?;
    let mut planner = Planner::new(&args.machine);
    let shape = planner.shape(&config)?;
    config
        .check_shape(&shape)
        .map_err(|(key, message)| anyhow!("{}: {key}: {message}", args.file.display()))?;
    let machine = planner.machine(&config)?;
    let prediction = plan::predict(&config, &shape, &machine);
    if args.json {
        say!("{}", to_json(&prediction));
    } else {
        print!("{}", page(&config, &shape, &machine, &prediction));
    }
    Ok(exit::OK)
}

impl Planner {
    pub fn new(machine: &MachineArgs) -> Planner {
        Planner { machine: machine.clone(), ..Planner::default() }
    }

    /// Predicts for another machine from here on.
    pub fn plan_for(&mut self, machine: MachineArgs) {
        self.machine = machine;
    }

    /// What a run of `config` will take.
    ///
    /// # Errors
    ///
    /// When the model's shape can't be read, or the device that is named is not here and its memory was not given.
    pub fn predict(&mut self, config: &RunConfig) -> Result<Prediction> {
        let shape = self.shape(config)?;
        Ok(plan::predict(config, &shape, &self.machine(config)?))
    }

    /// The shape of the run's model: the configuration's own, a folder's, or what the engine reads out of a file.
    fn shape(&mut self, config: &RunConfig) -> Result<ModelConfig> {
        let path = match (&config.model.config, &config.model.path) {
            (Some(shape), _) => return Ok(shape.clone()),
            (None, Some(path)) => path,
            (None, None) => bail!("model: expected `path` or `config`, found neither"),
        };
        if !self.shapes.contains_key(path) {
            let shape = read_shape(path).with_context(|| format!("model.path: `{path}`"))?;
            self.shapes.insert(path.clone(), shape);
        }
        Ok(self.shapes[path].clone())
    }

    /// The machine that the run would have: as given, else this one with the device that the configuration names.
    fn machine(&self, config: &RunConfig) -> Result<Machine> {
        let host_memory = self.machine.host_memory.unwrap_or_else(total_memory);
        let cap = config.run.memory_cap;
        let index = match config.run.device {
            Device::Cpu => None,
            Device::Cuda(index) => Some(index),
            Device::Auto => Some(0),
        };
        let found = index.filter(|_| self.machine.device_memory.is_none()).and_then(|index| {
            self.devices().iter().find(|device| device["index"].as_u64() == Some(index as u64))
        });
        if let (None, Some(given)) = (index, self.machine.device_memory) {
            bail!(
                "--device-memory: expected it for a run on CUDA, found {given} beside `run.device: cpu`\n  help: --host-memory is what \
                 a run on the CPU lives in"
            );
        }
        let total = match (index, self.machine.device_memory, found) {
            (None, ..) => None,
            (Some(_), Some(given), _) => Some(given),
            (Some(_), None, Some(device)) => Some(Bytes(device["total"].as_u64().unwrap_or(0))),
            (Some(_), None, None) if config.run.device == Device::Auto => None,
            // A cap says all that matters of a card that is elsewhere.
            (Some(_), None, None) => Some(cap.with_context(|| {
                format!(
                    "run.device: expected a CUDA device here, found none for `{}`\n  help: give --device-memory 24GiB",
                    String::from(config.run.device)
                )
            })?),
        };
        let name = found.and_then(|device| device["name"].as_str()).unwrap_or_default();
        let cuda = total.is_some();
        let memory = total.unwrap_or(host_memory);
        Ok(Machine {
            cuda,
            device_memory: cap.map_or(memory, |cap| cap.min(memory)),
            host_memory,
            speed: Speed::of_device(name, cuda),
        })
    }

    fn devices(&self) -> &[Value] {
        self.devices.get_or_init(|| {
            let answer = ask_engine(&["doctor", "--json"]).unwrap_or_default();
            answer["devices"].as_array().cloned().unwrap_or_default()
        })
    }
}

fn read_shape(path: &str) -> Result<ModelConfig> {
    if let Some(shape) = ModelConfig::of_folder(Path::new(path))? {
        return Ok(shape);
    }
    let answer = ask_engine(&["shape", path])?;
    ModelConfig::from_hf_json(path, &answer.to_string())
}

/// What the engine prints as JSON.
fn ask_engine(arguments: &[&str]) -> Result<Value> {
    let engine = find_worker()?;
    let output = Command::new(&engine).args(arguments).output();
    let output = output.with_context(|| format!("{}: can't be started", engine.display()))?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("error: ")
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn total_memory() -> Bytes {
    Bytes(super::doctor::memory().0)
}

/// The prediction for people.
fn page(
    config: &RunConfig,
    shape: &ModelConfig,
    machine: &Machine,
    prediction: &Prediction,
) -> String {
    let Prediction { engine, settings, memory, work, seconds_per_step, wall } = prediction;
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:<22} {value}\n"));
    line("model", format!("{} parameters", Tokens(shape.num_parameters())));
    line("step", format!("{} tokens, blocks of {}", work.tokens, config.train.sequence_length));
    line("engine", engine.name().to_string());
    if let Some(settings) = settings {
        let json = serde_json::to_value(settings).unwrap_or_default();
        for (key, value) in json.as_object().into_iter().flatten() {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_string);
            line(&format!("  {key}"), value);
        }
    }
    line(
        if machine.cuda { "device memory" } else { "memory" },
        format!("{} of {} at the highest point", memory.device_peak(), machine.device_memory),
    );
    line("  weights", memory.weights.to_string());
    line("  optimizer", memory.optimizer.to_string());
    for (phase, bytes) in &memory.phases {
        line(&format!("  {} (all)", phase.name()), bytes.to_string());
    }
    if machine.cuda {
        line("host memory", format!("{} page-locked of {}", memory.host, machine.host_memory));
    }
    line(
        "arithmetic",
        format!("{} FLOP a step, as the hardware computes", short(work.hardware_flops())),
    );
    line("  causal model", format!("{} (6 P_d T + 6 L D T^2)", short(work.model_flops)));
    line("  full square", format!("{} (6 P T + 12 L D T^2)", short(work.full_square_flops)));
    let rate = work.tokens as f64 / seconds_per_step;
    line(
        "time",
        format!(
            "{} a step, {} tokens/s, at the speed of {}",
            format_seconds(*seconds_per_step),
            format_number(rate),
            if machine.cuda { "an H100" } else { "two cores" }
        ),
    );
    let place = match wall.place {
        Place::Device if machine.cuda => "device memory",
        Place::Device => "memory",
        Place::Host => "host memory",
    };
    let verdict = match (prediction.fits(), engine) {
        (true, _) => "fits",
        (false, Engine::Layered) => "does not fit",
        (false, Engine::Plain) => "does not fit, by a coarse count",
    };
    line("first wall", format!("{place}, in {}; moved by {}", wall.phase.name(), wall.moved_by));
    line("verdict", format!("{verdict}: {} needed, {} there", wall.needed, wall.available));
    lines.concat()
}

/// `6.2e15`: two digits are what a prediction is good for.
fn short(x: f64) -> String {
    format!("{x:.1e}")
}

/// The prediction for programs: bytes, FLOPs and seconds.
pub fn to_json(prediction: &Prediction) -> Value {
    let Prediction { engine, settings, memory, work, seconds_per_step, wall } = prediction;
    let phases: serde_json::Map<String, Value> =
        memory.phases.iter().map(|(phase, bytes)| (phase.name().into(), bytes.0.into())).collect();
    json!({
        "engine": engine,
        "settings": settings,
        "peak_allocated": memory.device_peak().0,
        "phases": phases,
        "weights": memory.weights.0,
        "optimizer": memory.optimizer.0,
        "host": memory.host.0,
        "tokens": work.tokens,
        "hardware_flops": work.hardware_flops(),
        "model_flops": work.model_flops,
        "full_square_flops": work.full_square_flops,
        "seconds_per_step": seconds_per_step,
        "fits": prediction.fits(),
        "wall": { "place": if wall.place == Place::Host { "host" } else { "device" }, "phase": wall.phase.name(),
                  "needed": wall.needed.0, "available": wall.available.0, "moved_by": wall.moved_by },
    })
}
