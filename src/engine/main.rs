//! The worker: what needs tensors, one process each. People use `fathom`, which starts this program and reads what it writes.

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use fathom_data::tokenizer::Tokenizer;
use fathom_engine::assemble;
use fathom_engine::eval::{document_nll, perplexity};
use fathom_engine::model::weights::ModelFiles;
use fathom_engine::model::{Model, Setup};
use fathom_engine::{child, provenance, torch};
use fathom_spec::config::written::Written;
use fathom_spec::config::{self, Attention, Device, Dtype, RopeParameters};
use fathom_spec::units::format_number;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(
    name = "fathom-engine",
    version,
    about = "The worker of fathom: runs, evaluations, devices"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Execute the run in FOLDER: read its config.yaml, append to its events.jsonl, write its checkpoints
    Run { folder: PathBuf },
    /// Measure a model or checkpoint without training
    #[command(subcommand)]
    Eval(Eval),
    /// Print the shape of a model as a config.json
    Shape {
        /// A Hugging Face folder, a checkpoint of fathom, or a .gguf file
        model: PathBuf,
    },
    /// Print what this program was built from, as JSON
    Version,
    /// Say what LibTorch and which devices were found
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
enum Eval {
    /// The NLL of every prediction over given token ids, in one forward
    Tokens(TokensArgs),
    /// Perplexity by context length on a text
    Perplexity(PerplexityArgs),
}

/// Which model, and how to set it up.
#[derive(Args)]
struct ModelArgs {
    /// A Hugging Face folder, a checkpoint of fathom, or a .gguf file
    model: PathBuf,
    /// RoPE in place of the model's own, as JSON or YAML: '{rope_type: yarn, factor: 4}'
    #[arg(long, value_name = "JSON")]
    rope: Option<String>,
    /// What to compute in
    #[arg(long, default_value = "float32")]
    dtype: DtypeArg,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, default_value = "auto")]
    device: String,
    /// sdpa or eager
    #[arg(long, default_value = "sdpa")]
    attention: AttentionArg,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DtypeArg {
    Float32,
    Bfloat16,
}

#[derive(Clone, Copy, ValueEnum)]
enum AttentionArg {
    Sdpa,
    Eager,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("input").required(true).multiple(false))]
struct TokensArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// Token ids, separated by commas
    #[arg(long, group = "input")]
    ids: Option<String>,
    /// A file of token ids, separated by commas or white space, or a JSON list
    #[arg(long, group = "input", value_name = "FILE")]
    ids_file: Option<PathBuf>,
}

#[derive(Args)]
struct PerplexityArgs {
    #[command(flatten)]
    model: ModelArgs,
    /// A text file; one document. May be given several times
    #[arg(long, required = true, value_name = "FILE")]
    text: Vec<PathBuf>,
    /// Context lengths in tokens
    #[arg(long, value_delimiter = ',', default_value = "512,1024,2048,4096")]
    lengths: Vec<usize>,
    /// Tokenizer in place of the model's own: a folder, a tokenizer.json, a .gguf file, or `bytes`
    #[arg(long)]
    tokenizer: Option<String>,
    /// Begin each document with the tokenizer's BOS
    #[arg(long)]
    add_bos: bool,
    /// Predictions that count in each last-stride window; 0 leaves that measure out
    #[arg(long, default_value_t = 256)]
    last_stride: usize,
    /// Last-stride windows a context length
    #[arg(long, default_value = "16")]
    max_windows: NonZeroUsize,
    /// Width of the bins of NLL by position in tokens, in place of half octaves
    #[arg(long)]
    bin_tokens: Option<NonZeroUsize>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run { folder } => {
            // A panic becomes the run's ending, and is printed there once; LibTorch's own stack would drown it.
            std::panic::set_hook(Box::new(|_| {}));
            return child::run(&folder);
        }
        Command::Eval(Eval::Tokens(args)) => caught(|| eval_tokens(&args)),
        Command::Eval(Eval::Perplexity(args)) => caught(|| eval_perplexity(&args)),
        Command::Shape { model } => shape(&model),
        Command::Version => {
            println!("{}", provenance::version());
            Ok(())
        }
        Command::Doctor { json } => doctor(json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Turns a panic of LibTorch (memory that ran out, most often) into an error that says what happened.
fn caught(work: impl FnOnce() -> Result<()>) -> Result<()> {
    std::panic::set_hook(Box::new(|_| {}));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|panic| bail!(child::panicked(&*panic)))
}

/// Opens the model for evaluation: no gradients, weights in the dtype that is computed in.
fn open_model(args: &ModelArgs) -> Result<Model> {
    let device =
        Device::try_from(args.device.clone()).map_err(|e| anyhow::anyhow!("--device: {e}"))?;
    let device = torch::open_device(device, None)?;
    let files = ModelFiles::open(&args.model)?;
    let rope = args.rope.as_deref().map(parse_rope).transpose()?;
    let config = assemble::override_rope(files.config(), rope.as_ref(), None);
    config.check().map_err(|message| anyhow::anyhow!("--rope: {message}"))?;
    let dtype = match args.dtype {
        DtypeArg::Float32 => Dtype::Float32,
        DtypeArg::Bfloat16 => Dtype::Bfloat16,
    };
    let attention = match args.attention {
        AttentionArg::Sdpa => Attention::Sdpa,
        AttentionArg::Eager => Attention::Eager,
    };
    Model::load(&files, config, Setup { device, dtype, weights_dtype: dtype, attention })
}

fn parse_rope(text: &str) -> Result<RopeParameters> {
    let written = Written::parse("--rope", text)?;
    let rope: RopeParameters = config::from_written(&written, "")?;
    rope.check().map_err(|message| anyhow::anyhow!("--rope: {message}"))?;
    Ok(rope)
}

fn read_ids(args: &TokensArgs) -> Result<Vec<i64>> {
    let (source, text) = match (&args.ids, &args.ids_file) {
        (Some(ids), _) => ("--ids".to_string(), ids.clone()),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path);
            (
                path.display().to_string(),
                text.with_context(|| format!("{}: expected a file of token ids", path.display()))?,
            )
        }
        (None, None) => bail!("expected --ids or --ids-file"),
    };
    let words = text.split(|c: char| c == ',' || c.is_whitespace() || c == '[' || c == ']');
    words
        .filter(|word| !word.is_empty())
        .map(|word| {
            word.parse().with_context(|| format!("{source}: expected token ids, found `{word}`"))
        })
        .collect()
}

fn eval_tokens(args: &TokensArgs) -> Result<()> {
    let model = open_model(&args.model)?;
    let ids = read_ids(args)?;
    if ids.len() < 2 {
        bail!(
            "expected 2 token ids or more (a prediction needs a token to see), found {}",
            ids.len()
        );
    }
    let vocab_size = model.config.vocab_size as i64;
    if let Some((at, id)) = ids.iter().enumerate().find(|(_, id)| !(0..vocab_size).contains(*id)) {
        bail!("token {at}: expected an id from 0 to {}, found `{id}`", vocab_size - 1);
    }
    let nll = document_nll(&model, &ids, &[ids.len()], 2048)?.remove(0);
    let loss = nll.iter().sum::<f64>() / nll.len() as f64;
    let frequencies = model.rope.frequencies(ids.len());
    if args.model.json {
        let json = json!({
            "nll": nll, "loss": loss, "inv_freq": frequencies.inv_freq,
            "attention_scaling": frequencies.attention_scaling,
        });
        println!("{json}");
    } else {
        println!("tokens      {}", ids.len());
        println!("loss        {} nats a token over {} predictions", format_number(loss), nll.len());
        println!("perplexity  {}", format_number(loss.exp()));
    }
    Ok(())
}

fn eval_perplexity(args: &PerplexityArgs) -> Result<()> {
    let model = open_model(&args.model)?;
    let spec = args.tokenizer.clone().unwrap_or_else(|| args.model.model.display().to_string());
    let tokenizer = Tokenizer::from_spec(&spec)?;
    tokenizer
        .check_vocabulary(&spec, model.config.vocab_size)
        .map_err(|message| anyhow!("--tokenizer: {message}"))?;
    let bos = tokenizer.bos_id().filter(|_| args.add_bos);
    let mut documents = Vec::new();
    for path in &args.text {
        documents.push(bos.into_iter().chain(tokenizer.encode(&read_text(path)?)?).collect());
    }
    let mut context_lengths = args.lengths.clone();
    context_lengths.sort_unstable();
    context_lengths.dedup();
    if context_lengths.first().is_some_and(|&w| w < 2) {
        bail!("--lengths: expected lengths of 2 or more");
    }
    let options = perplexity::Options {
        context_lengths,
        last_stride: args.last_stride,
        max_windows: args.max_windows.get(),
        bin_tokens: args.bin_tokens.map(NonZeroUsize::get),
        tile_tokens: 2048,
    };
    let report = perplexity::measure(&model, &documents, &options, &mut || false)?;
    let report = report.expect("nothing cuts it short");
    let longest = documents.iter().map(Vec::len).max().unwrap_or(0);
    let left_out: Vec<_> = options.context_lengths.iter().filter(|&&w| w > longest).collect();
    if !left_out.is_empty() {
        eprintln!(
            "warning: --lengths: {left_out:?} were left out: the longest document has {longest} tokens"
        );
    }
    if args.model.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    for (name, rows) in [("prefix", &report.prefix), ("last stride", &report.last_stride)] {
        println!(
            "{name:<12} {:>8} {:>10} {:>11} {:>18}",
            "windows", "nll", "perplexity", "95 % interval"
        );
        for row in rows {
            // One window says nothing of how much others would differ.
            let interval = match row.windows {
                0 | 1 => "–".to_string(),
                _ => format!(
                    "{} to {}",
                    format_number(row.nll_low.exp()),
                    format_number(row.nll_high.exp())
                ),
            };
            let (nll, perplexity) = (format_number(row.nll), format_number(row.perplexity));
            println!(
                "{:<12} {:>8} {nll:>10} {perplexity:>11} {interval:>18}",
                row.context_length, row.windows
            );
        }
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("{}: expected a UTF-8 text file", path.display()))
}

fn shape(model: &Path) -> Result<()> {
    println!("{}", ModelFiles::open(model)?.config().to_hf_json());
    Ok(())
}

fn doctor(as_json: bool) -> Result<()> {
    let missing = torch::cuda_missing();
    let devices: Vec<_> = torch::cuda_devices()
        .iter()
        .map(|d| json!({ "index": d.index, "name": d.name, "free": d.free, "total": d.total }))
        .collect();
    let json = json!({
        "libtorch": torch::libtorch_version(),
        "threads": tch::get_num_threads(),
        "cpu": torch::device_name(tch::Device::Cpu),
        "driver": torch::driver_version(),
        "cuda_missing": missing,
        "devices": devices,
    });
    if as_json {
        println!("{json}");
    } else {
        println!("{}", serde_json::to_string_pretty(&json)?);
    }
    Ok(())
}
