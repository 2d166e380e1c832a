//! The worker process of one run: `fathom-engine run FOLDER`.
//!
//! It reads `config.yaml`, appends every event to `events.jsonl`, and writes exactly one ending, whatever happens: this is
//! the one place that turns an error or a panic into an ending. Out of memory is an ending of its own.

mod failure;
mod honoured;
mod log;
mod orders;

use crate::assemble;
use crate::eval::perplexity;
use crate::facts::Sink;
use crate::provenance;
use crate::torch;
use crate::train::orders::{Order, refused_save, unsaved};
use crate::train::{self, Ending, Progress, Training};
use anyhow::Result;
pub use failure::panicked;
use failure::{failure, memory_event, panic_message};
use fathom_data::cache::Cache;
use fathom_spec::config::{Engine, RunConfig};
use fathom_spec::plan::{Place, Prediction};
use fathom_spec::record::control::Command;
use fathom_spec::record::{
    ANNEALING, EventKind, EventLog, Process, RunPaths, STOP_AT_TOKENS, host, read_events,
};
use honoured::{as_planned, honoured};
use log::{Heart, Log};
use orders::Orders;
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use tch::Device;

/// Executes the run in `folder` and writes its ending. The exit code says which it was: 0 for every ending that is a
/// result or was asked for, 1 for a failure.
pub fn run(folder: &Path) -> ExitCode {
    let paths = RunPaths::new(folder);
    let mut log = match EventLog::open(&paths.events()) {
        Ok(log) => Log::new(log),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
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
    log.fact("run.device", torch::device_text(device));
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
    as_planned(paths, &config, &log.facts())?;
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
    honoured(&config, &log.facts())?;
    Ok(EventKind::Finished { step, tokens, seconds: log.elapsed_seconds() })
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
        device: torch::device_text(device),
        device_name: torch::device_name(device),
        driver: torch::driver_version(),
        libtorch: torch::libtorch_version(),
        threads: tch::get_num_threads() as usize,
        seed: config.train.seed,
        environment: environment(),
    });
    Ok(())
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
