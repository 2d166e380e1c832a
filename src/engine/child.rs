//! The worker process of one run: `fathom-engine run FOLDER`.
//!
//! It reads `config.yaml`, appends every event to `events.jsonl`, and writes exactly one ending, whatever happens: this is
//! the one place that turns an error or a panic into an ending. Out of memory is an ending of its own.

mod orders;

use crate::assemble;
use crate::eval::perplexity;
use crate::facts::Sink;
use crate::provenance;
use crate::torch;
use crate::train::orders::{Order, refused_save, unsaved};
use crate::train::{self, Ending, Progress, Training};
use anyhow::{Result, bail};
use fathom_data::cache::Cache;
use fathom_data::corpus::TRAIN;
use fathom_spec::config::{Continuation, Engine, RANDOM_CORPUS, RunConfig};
use fathom_spec::plan::{Place, Prediction};
use fathom_spec::record::control::Command;
use fathom_spec::record::{
    ANNEALING, EventKind, EventLog, Process, RunPaths, STOP_AT_TOKENS, host, read_events,
};
use fathom_spec::units::Bytes;
use orders::Orders;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use tch::Device;

/// Seconds between heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The log of a run as a sink, with the facts kept for the check at the end.
#[derive(Clone)]
struct Log {
    log: Arc<Mutex<EventLog>>,
    facts: Arc<Mutex<BTreeMap<String, Value>>>,
    /// The last step that was logged.
    step: Arc<AtomicU64>,
}

impl Log {
    /// Takes over the facts of earlier attempts: a run that is resumed after its last step meets no batch any more, and what
    /// it met before still counts.
    fn remember(&mut self, paths: &RunPaths) -> Result<()> {
        let (events, _) = read_events(&paths.events(), 0)?;
        let mut facts = self.facts.lock().unwrap_or_else(|e| e.into_inner());
        for event in events {
            if let EventKind::Fact { name, value } = event.kind {
                facts.insert(name, value);
            }
        }
        Ok(())
    }

    /// What a fact of the run says, of this attempt or an earlier one.
    fn fact_of(&self, name: &str) -> Option<Value> {
        self.facts.lock().unwrap_or_else(|e| e.into_inner()).get(name).cloned()
    }
}

impl Sink for Log {
    /// # Panics
    ///
    /// When the event can't be written: a run that can't be recorded does not go on.
    fn event(&mut self, kind: EventKind) {
        if let EventKind::Fact { name, value } = &kind {
            let mut facts = self.facts.lock().unwrap_or_else(|e| e.into_inner());
            facts.insert(name.clone(), value.clone());
        }
        if let EventKind::Step { step, .. } = &kind {
            self.step.store(*step, Ordering::Relaxed);
        }
        let mut log = self.log.lock().unwrap_or_else(|e| e.into_inner());
        if let Err(error) = log.write(kind) {
            drop(log);
            panic!("{error:#}");
        }
    }
}

/// Executes the run in `folder` and writes its ending. The exit code says which it was: 0 for every ending that is a
/// result or was asked for, 1 for a failure.
pub fn run(folder: &Path) -> ExitCode {
    let paths = RunPaths::new(folder);
    let log = match EventLog::open(&paths.events()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let mut log =
        Log { log: Arc::new(Mutex::new(log)), facts: Arc::default(), step: Arc::default() };
    let mut orders = Orders::listen(&paths);
    sign_in(&paths);
    let progress = Progress::default();
    progress.phase.set("start");
    progress
        .stop_at_tokens
        .set(std::env::var(STOP_AT_TOKENS).ok().and_then(|text| text.parse().ok()));
    let result =
        catch_unwind(AssertUnwindSafe(|| execute(&paths, &mut log, &mut orders, &progress)));
    let ending = match result {
        Ok(Ok(ending)) => ending,
        Ok(Err(error)) => failure(&format!("{error:#}"), &progress),
        Err(panic) => failure(&panic_message(&*panic), &progress),
    };
    if let EventKind::OutOfMemory { step, phase, .. } = &ending {
        // The counters outlive the tensors: how far the run got before it was refused.
        log.event(memory_event(*step, phase, progress.device.get().unwrap_or(Device::Cpu)));
    }
    if !matches!(ending, EventKind::Failed { .. }) {
        orders.dismiss(&mut log);
    }
    let failed = matches!(ending, EventKind::Failed { .. });
    if let EventKind::Failed { error } = &ending {
        eprintln!("error: {error}");
    }
    let mut log = log.log.lock().unwrap_or_else(|e| e.into_inner());
    if let Err(error) = log.write(ending) {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Says in the run's folder which process has it, unless who started this one has said it.
fn sign_in(paths: &RunPaths) {
    let Some(own) = Process::of(std::process::id()) else { return };
    let said = Process::read(paths);
    let is_said = said.is_some_and(|said| {
        (said.pid, said.start_time, said.boot_id) == (own.pid, own.start_time, own.boot_id.clone())
    });
    if !is_said && let Err(error) = own.write(paths) {
        // The log that follows can't be written either, and says so.
        eprintln!("warning: {error:#}");
    }
}

fn execute(
    paths: &RunPaths,
    log: &mut Log,
    orders: &mut Orders,
    progress: &Progress,
) -> Result<EventKind> {
    let config = RunConfig::read(&paths.config())?;
    log.remember(paths)?;
    let device = torch::open_device(config.run.device, config.run.memory_cap)?;
    progress.device.set(Some(device));
    if let Some(threads) = config.run.threads {
        tch::set_num_threads(threads as i32);
    }
    started(paths, &config, device, log)?;
    provenance::record(log, matches!(device, Device::Cuda(_)));
    let _heart = Heart::begin(log.clone());
    if let (Device::Cpu, Some(cap)) = (device, config.run.memory_cap) {
        torch::limit_resident_memory(cap)?;
    }
    log.fact("run.device", device_text(device));
    log.fact("run.threads", tch::get_num_threads());
    // The limit as it was set, not as it was asked for: the kernel's on the CPU, the allocator's on CUDA.
    let limit = if device == Device::Cpu { torch::data_limit() } else { torch::allocator_cap() };
    log.fact("run.memory_cap", limit);

    progress.phase.set("plan");
    // A run that goes on does so on the engine that it began on.
    let began_on =
        log.fact_of("train.engine").and_then(|engine| serde_json::from_value(engine).ok());
    let config = began_on.map_or(config.clone(), |engine| config.on_engine(engine));
    let prediction = assemble::predict(&config, device)?;
    let config = config.on_engine(prediction.engine);
    log.fact("plan", predicted(&prediction));
    if let Some(ending) = refusal(&prediction) {
        return Ok(ending);
    }
    progress.phase.set("load");
    let model = assemble::model(&config, prediction.settings.as_ref(), device, log)?;
    let tokenizer = assemble::tokenizer(&config, &model.config, log)?;
    let cache = Cache::at(paths.cache());
    let vocab_size = model.config.vocab_size;
    let data = assemble::data(&config, Some(&tokenizer), vocab_size, &cache, log)?;
    let training = Training {
        config: &config,
        paths,
        model: &model,
        tokenizer: &tokenizer,
        train: data.train.clone(),
        held_out: data.held_out.as_ref(),
        settings: prediction.settings,
        annealing_since: log.fact_of(ANNEALING).and_then(|fact| fact["decay_start"].as_u64()),
        progress,
    };
    log.event(memory_event(0, "load", device));
    let mut answers = log.clone();
    let ending = train::train(&training, log, &mut || orders.next(&mut answers))?;
    let (step, tokens) = match ending {
        Ending::Finished { step, tokens } => (step, tokens),
        Ending::Stopped { step, reason } => return Ok(EventKind::Stopped { step, reason }),
        Ending::Diverged { step, loss, reason } => {
            return Ok(EventKind::Diverged { step, loss, reason });
        }
    };
    let documents = &data.held_out_documents;
    if let Some(order) = evaluate(&training, documents, step, log, orders)? {
        return Ok(EventKind::Stopped { step, reason: order.reason });
    }
    log.fact("model.attention", Value::from(model.kernel.chosen()));
    honoured(&config, &log.facts.lock().unwrap_or_else(|e| e.into_inner()))?;
    let seconds = log.log.lock().unwrap_or_else(|e| e.into_inner()).elapsed().as_secs_f64();
    Ok(EventKind::Finished { step, tokens, seconds })
}

/// What was predicted, to be read beside what is measured.
fn predicted(prediction: &Prediction) -> Value {
    let phases: serde_json::Map<String, Value> = prediction
        .memory
        .phases
        .iter()
        .map(|(phase, bytes)| (phase.name().to_string(), bytes.0.into()))
        .collect();
    serde_json::json!({
        "settings": prediction.settings,
        "peak_allocated": prediction.memory.device_peak().0,
        "phases": phases,
        "host": prediction.memory.host.0,
        "hardware_flops": prediction.work.hardware_flops(),
        "model_flops": prediction.work.model_flops,
        "full_square_flops": prediction.work.full_square_flops,
        "seconds_per_step": prediction.seconds_per_step,
    })
}

/// The ending of a run that the arithmetic says can't be held: out of memory, before anything is allocated.
///
/// Only where it is plain: the layered engine's memory is known to a few percent, and host memory that runs out would end
/// more than the run.
fn refusal(prediction: &Prediction) -> Option<EventKind> {
    /// How far past what there is a prediction has to be.
    const PLAINLY: f64 = 1.05;
    let wall = &prediction.wall;
    let plain = wall.needed.0 as f64 > PLAINLY * wall.available.0 as f64;
    if !plain || prediction.engine == Engine::Plain {
        return None;
    }
    let place = match wall.place {
        Place::Device => "on the device",
        Place::Host => "of host memory",
    };
    let message = format!(
        "predicted before the start: {} needed {place} ({}), {} available\n  help: {}",
        wall.needed,
        wall.phase.name(),
        wall.available,
        wall.moved_by
    );
    let (asked, total) = (Some(wall.needed.0), Some(wall.available.0));
    Some(EventKind::OutOfMemory {
        step: 0,
        phase: "plan".into(),
        asked,
        free: total,
        total,
        message,
    })
}

/// Perplexity by context length on the held-out documents, when training has ended. What is asked for meanwhile and ends the run
/// cuts it short and is returned: a run that goes on makes it up.
fn evaluate(
    training: &Training,
    documents: &[Vec<u32>],
    step: u64,
    log: &mut Log,
    orders: &mut Orders,
) -> Result<Option<Order>> {
    let eval = &training.config.eval;
    let dtype = training
        .model
        .embed(&tch::Tensor::from_slice(&[0i64]).to_device(training.model.device))
        .kind();
    log.fact("model.dtype", assemble::dtype_name(dtype));
    if eval.context_lengths.is_empty() {
        return Ok(None);
    }
    training.progress.phase.set("eval");
    // Gradients and the optimizer's scratch are not needed any more.
    torch::empty_cache(training.model.device);
    let options = perplexity::Options {
        context_lengths: eval.context_lengths.clone(),
        last_stride: eval.last_stride,
        max_windows: eval.max_windows,
        bin_tokens: None,
        tile_tokens: training.config.train.loss_tile_tokens,
    };
    let mut answers = log.clone();
    let mut ends = None;
    let report = perplexity::measure(training.model, documents, &options, &mut || {
        while let Some(order) = orders.next(&mut answers) {
            let refusal = refused_save(training, order.command);
            let is_refused = refusal.is_some();
            let outcome = refusal.unwrap_or_else(|| match (order.command, unsaved(training)) {
                (Command::Save, _) => format!("the checkpoint of step {step} was written before"),
                (Command::StartAnnealing, _) => "refused: training is done".to_string(),
                (_, Some(reason)) => format!("no checkpoint was written: {reason}"),
                (_, None) => "training is done; its evaluation is left to another time".to_string(),
            });
            if order.request.is_some() {
                answers.event(order.answer(outcome));
            }
            if order.command.ends_the_run() && !is_refused {
                ends = Some(order);
                return true;
            }
        }
        false
    })?;
    let Some(report) = report else { return Ok(ends) };
    let measured: Vec<usize> = report.prefix.iter().map(|row| row.context_length).collect();
    if measured.len() < eval.context_lengths.len() {
        let longest = documents.iter().map(Vec::len).max().unwrap_or(0);
        let left_out: Vec<_> =
            eval.context_lengths.iter().filter(|w| !measured.contains(w)).collect();
        let message = format!(
            "eval.context_lengths: {left_out:?} were left out: the longest document of `{}` has {longest} tokens",
            eval.split
        );
        log.event(EventKind::Warning { message });
    }
    log.fact("eval.context_lengths", serde_json::json!(measured));
    let spans: Vec<_> =
        report.last_stride.iter().map(|row| row.tokens / row.windows.max(1)).collect();
    log.fact("eval.last_stride", serde_json::json!(spans));
    let windows: Vec<_> = report.last_stride.iter().map(|row| row.windows).collect();
    log.fact("eval.max_windows", serde_json::json!(windows));
    for event in report.events(step, &eval.split) {
        log.event(event);
    }
    Ok(None)
}

/// Compares what the leaves met with what was configured.
///
/// # Errors
///
/// `configuration not honoured`, with the key and both values.
pub fn honoured(config: &RunConfig, facts: &BTreeMap<String, Value>) -> Result<()> {
    let fact = |name: &str| facts.get(name).cloned().unwrap_or(Value::Null);
    let longest = fact("train.sequence_length")["max"].as_u64().unwrap_or(0);
    let length = config.train.sequence_length as u64;
    let rope = config.model.rope_parameters.as_ref().map(|rope| rope.rope_type.name());
    let rope_in_use = fact("model.rope_parameters")["rope_type"].clone();
    let checks = [
        ("train.sequence_length", longest > length, Value::from(length), Value::from(longest)),
        check("model.dtype", config.model.dtype.name().into(), fact("model.dtype")),
        check(
            "train.weights_dtype",
            config.train.weights_dtype.name().into(),
            fact("train.weights_dtype"),
        ),
        check("model.rope_parameters", rope.map_or(rope_in_use.clone(), Value::from), rope_in_use),
        check(
            "train.learning_rate",
            config.train.learning_rate.into(),
            fact("train.learning_rate"),
        ),
        check(
            "train.loss_tile_tokens",
            config.train.loss_tile_tokens.into(),
            fact("train.loss_tile_tokens"),
        ),
        check(
            "train.micro_batch_size",
            config.train.micro_batch_size.into(),
            fact("train.micro_batch_size"),
        ),
    ];
    let of_data = data_checks(config, facts);
    let written = written_settings(config).into_iter().filter(|(_, asked)| !asked.is_null());
    let written = written.map(|(key, asked)| check(key, asked, fact(key)));
    match checks.into_iter().chain(of_data).chain(written).find(|(_, broken, ..)| *broken) {
        Some((key, _, asked, met)) => {
            bail!(
                "configuration not honoured: {key}: configured as `{asked}`, but the run met `{met}`"
            )
        }
        None => Ok(()),
    }
}

/// A key, whether it was broken, what was configured and what was met.
type Check = (&'static str, bool, Value, Value);

/// What the blocks tell of the settings that made them. Documents of random tokens tell nothing.
fn data_checks(config: &RunConfig, facts: &BTreeMap<String, Value>) -> Vec<Check> {
    let data = &config.data;
    if data.corpus == RANDOM_CORPUS {
        return Vec::new();
    }
    let met = |name: &str, what: &str| facts.get(name).map_or(&Value::Null, |fact| &fact[what]);
    let count = |name: &str, what: &str| met(name, what).as_u64().unwrap_or(0) as usize;
    let found = |key: &'static str, broken: bool, asked: Value| -> Check {
        (key, broken, asked, facts.get(key).cloned().unwrap_or_default())
    };
    let continued = count("data.overflow", "continued");
    let overlap = met("data.stride", "overlap");
    let overlap = overlap["max"].as_u64().unwrap_or(0) as usize;
    // An overlap is shorter only where a document had just begun.
    let strides = overlap > data.stride || (overlap == 0 && data.stride > 0 && continued > 0);
    let extra_bos = count("data.continuation", "extra_bos");
    let restarted = data.continuation == Continuation::Restarted;
    let longest = count("data.max_document_tokens", "longest");
    let documents = facts.get("data.documents").and_then(Value::as_u64).unwrap_or(0) as usize;
    let batches = data.pack_batch_documents.map_or(1, |size| documents.div_ceil(size));
    let of = count("data.select", "of");
    let selected = data.select.get(TRAIN).map_or(of, |range| range.of(of).len());
    vec![
        found(
            "data.min_length",
            count("data.min_length", "shortest_block") < data.min_length,
            data.min_length.into(),
        ),
        found("data.stride", strides, data.stride.into()),
        found("data.overflow", !data.overflow && continued > 0, data.overflow.into()),
        found(
            "data.continuation",
            !restarted && extra_bos > 0,
            if restarted { "restarted".into() } else { "seamless".into() },
        ),
        found(
            "data.max_document_tokens",
            data.max_document_tokens.is_some_and(|most| longest > most),
            data.max_document_tokens.into(),
        ),
        found(
            "data.pack_batch_documents",
            count("data.pack_batch_documents", "batches") != batches,
            data.pack_batch_documents.into(),
        ),
        found("data.select", count("data.select", "documents") != selected, selected.into()),
    ]
}

/// Settings of the engines that a run meets as they are written, where they are.
fn written_settings(config: &RunConfig) -> Vec<(&'static str, Value)> {
    let train = &config.train;
    vec![
        ("train.engine", serde_json::json!(train.engine)),
        ("train.attention_head_groups", train.attention_head_groups.into()),
        ("train.activation_offloading", train.activation_offloading.into()),
        ("train.attention_offloading", train.attention_offloading.into()),
        ("train.checkpoint_every_layers", train.checkpoint_every_layers.into()),
        ("train.recompute", train.recompute.map(|recompute| recompute.name()).into()),
        ("train.optimizer_in_backward", train.optimizer_in_backward.into()),
        ("train.weight_streaming", train.weight_streaming.into()),
        ("train.stochastic_rounding", train.stochastic_rounding.into()),
        ("train.grad_clipping", serde_json::json!(train.grad_clipping)),
    ]
}

fn check(key: &'static str, asked: Value, met: Value) -> Check {
    let same = match (asked.as_f64(), met.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => asked == met,
    };
    (key, !same, asked, met)
}

fn started(paths: &RunPaths, config: &RunConfig, device: Device, log: &mut Log) -> Result<()> {
    let (events, _) = read_events(&paths.events(), 0)?;
    let attempts =
        events.iter().filter(|event| matches!(event.kind, EventKind::Started { .. })).count();
    let build = crate::build_info();
    log.event(EventKind::Started {
        attempt: attempts as u32 + 1,
        resumed_from_step: paths.latest_checkpoint().map_or(0, |(step, _)| step),
        pid: std::process::id(),
        code_version: env!("CARGO_PKG_VERSION").to_string(),
        git_commit: build.commit.map(str::to_string),
        git_dirty: build.dirty,
        host: host(),
        device: device_text(device),
        device_name: device_name(device),
        driver: driver_version(),
        libtorch: torch::libtorch_version(),
        threads: tch::get_num_threads() as usize,
        seed: config.train.seed,
        environment: environment(),
    });
    Ok(())
}

fn device_text(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}

/// The device's own name: the GPU's, or the processor's model.
pub fn device_name(device: Device) -> String {
    if let Device::Cuda(index) = device {
        let found = torch::cuda_devices().into_iter().find(|info| info.index == index);
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

/// The environment variables that can change a result.
fn environment() -> BTreeMap<String, String> {
    const RELEVANT: [&str; 5] = [
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "CUDA_VISIBLE_DEVICES",
    ];
    RELEVANT.iter().filter_map(|name| Some((name.to_string(), std::env::var(name).ok()?))).collect()
}

fn memory_event(step: u64, phase: &str, device: Device) -> EventKind {
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
fn failure(message: &str, progress: &Progress) -> EventKind {
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

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("panicked without a message")
        .to_string()
}

/// Writes a heartbeat now and then until it is dropped, so that a silent run can be told from a dead one.
struct Heart {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Heart {
    fn begin(mut log: Log) -> Heart {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(HEARTBEAT) == Err(mpsc::RecvTimeoutError::Timeout) {
                let step = log.step.load(Ordering::Relaxed);
                log.event(EventKind::Heartbeat { step });
            }
        });
        Heart { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Heart {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
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

    #[test]
    fn a_fact_that_contradicts_the_configuration_ends_the_run() {
        let text = "model: {path: m}\ndata: {corpus: c, select: {train: 50%}, stride: 8, pack_batch_documents: 10}\ntrain: {sequence_length: 64, total_tokens: 4K, learning_rate: 1e-5}\n";
        let written = fathom_spec::config::written::Written::parse("run.yaml", text).unwrap();
        let config = RunConfig::from_written(&written).unwrap();
        let honest: BTreeMap<String, Value> = [
            ("train.sequence_length", serde_json::json!({"max": 64})),
            ("model.dtype", "float32".into()),
            ("train.weights_dtype", "float32".into()),
            ("model.rope_parameters", serde_json::json!({"rope_type": "default"})),
            ("train.learning_rate", 1e-5.into()),
            ("train.loss_tile_tokens", 2048.into()),
            ("train.micro_batch_size", 1.into()),
            ("data.min_length", serde_json::json!({"shortest_block": 5})),
            ("data.stride", serde_json::json!({"overlap": {"min": 3, "max": 8}})),
            ("data.overflow", serde_json::json!({"continued": 9})),
            ("data.continuation", serde_json::json!({"extra_bos": 0})),
            ("data.max_document_tokens", serde_json::json!({"longest": 1000})),
            ("data.documents", 21.into()),
            ("data.pack_batch_documents", serde_json::json!({"batches": 3})),
            ("data.select", serde_json::json!({"documents": 21, "of": 42})),
        ]
        .map(|(name, value)| (name.to_string(), value))
        .into();
        honoured(&config, &honest).unwrap();
        for (name, value) in [
            ("train.sequence_length", serde_json::json!({"max": 128})),
            ("model.dtype", "bfloat16".into()),
            ("data.min_length", serde_json::json!({"shortest_block": 1})),
            ("data.stride", serde_json::json!({"overlap": {"min": 0, "max": 0}})),
            ("data.stride", serde_json::json!({"overlap": {"min": 9, "max": 9}})),
            ("data.continuation", serde_json::json!({"extra_bos": 9})),
            ("data.pack_batch_documents", serde_json::json!({"batches": 1})),
            ("data.select", serde_json::json!({"documents": 42, "of": 42})),
        ] {
            let mut facts = honest.clone();
            facts.insert(name.to_string(), value);
            let error = honoured(&config, &facts).unwrap_err().to_string();
            assert!(error.starts_with(&format!("configuration not honoured: {name}:")), "{error}");
        }
        let mut strict = config.clone();
        (strict.data.overflow, strict.data.max_document_tokens) = (false, Some(999));
        let error = honoured(&strict, &honest).unwrap_err().to_string();
        assert!(error.starts_with("configuration not honoured: data.overflow:"), "{error}");
        strict.data.overflow = true;
        let error = honoured(&strict, &honest).unwrap_err().to_string();
        assert!(error.starts_with("configuration not honoured: data.max_document"), "{error}");
    }
}
