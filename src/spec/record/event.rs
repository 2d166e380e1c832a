//! `Event`: what a run says of itself, one JSON object a line.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::Value;
use std::collections::BTreeMap;

/// The largest `seq` of an event: stores count in signed 64-bit numbers.
pub const MAX_SEQ: u64 = i64::MAX as u64;

/// The version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 1;

/// One line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Version of the format: [`FORMAT`].
    #[serde(deserialize_with = "version")]
    pub v: u32,
    /// Counts up by one over the whole log, attempts included; the first line is 0, none is above [`MAX_SEQ`].
    #[serde(deserialize_with = "seq")]
    pub seq: u64,
    /// Wall time, seconds since 1970-01-01 UTC.
    pub time: f64,
    /// Seconds since this attempt's process began, by a clock that never goes back.
    pub elapsed_seconds: f64,
    #[serde(flatten)]
    pub kind: EventKind,
}

fn version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let version = u32::deserialize(deserializer)?;
    if version != FORMAT {
        return Err(de::Error::custom(format!(
            "expected an event of version {FORMAT}, found {version}"
        )));
    }
    Ok(version)
}

fn seq<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let seq = u64::deserialize(deserializer)?;
    if seq > MAX_SEQ {
        return Err(de::Error::custom(format!("expected a seq of at most {MAX_SEQ}, found {seq}")));
    }
    Ok(seq)
}

/// How a perplexity was taken; `long-context` readers must never mix the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvalMethod {
    /// One forward over the first `context_length` tokens of a document; all its predictions count.
    Prefix,
    /// Windows of `context_length` tokens; only the last few predictions of each count, so every one sees about
    /// `context_length` tokens.
    LastStride,
}

impl EvalMethod {
    pub fn name(self) -> &'static str {
        match self {
            EvalMethod::Prefix => "prefix",
            EvalMethod::LastStride => "last_stride",
        }
    }
}

/// What happened. Losses are natural-log, in nats per token; memory is in bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EventKind {
    /// The attempt began: everything that says what ran, where.
    Started {
        /// 1 for the first attempt of this run.
        attempt: u32,
        /// Steps already done by the checkpoint that this attempt resumed from; 0 for a fresh start.
        resumed_from_step: u64,
        pid: u32,
        code_version: String,
        git_commit: Option<String>,
        git_dirty: Option<bool>,
        host: String,
        /// `cpu` or `cuda:0`.
        device: String,
        /// The device's own name.
        device_name: String,
        driver: Option<String>,
        libtorch: String,
        threads: usize,
        seed: u64,
        /// Environment variables that can change a result.
        environment: BTreeMap<String, String>,
    },
    /// Something that the leaf of the code met, as it was met: not as it was configured.
    Fact {
        /// The configuration key it answers to, or a name of its own: `train.sequence_length`, `data.documents`.
        name: String,
        value: Value,
    },
    /// One optimizer step.
    Step {
        /// 1 for the first.
        step: u64,
        /// Tokens seen since the run began, padding excluded.
        tokens: u64,
        #[serde(with = "number")]
        loss: f64,
        #[serde(with = "number")]
        learning_rate: f64,
        /// Global L2 norm of the gradients before clipping.
        #[serde(with = "number")]
        grad_norm: f64,
        #[serde(with = "number")]
        step_seconds: f64,
        #[serde(with = "number")]
        tokens_per_second: f64,
        peak_allocated: u64,
        peak_reserved: u64,
    },
    /// Mean loss on a split, token-weighted.
    Eval {
        step: u64,
        split: String,
        #[serde(with = "number")]
        loss: f64,
        tokens: u64,
    },
    /// Perplexity at one context length.
    Perplexity {
        step: u64,
        split: String,
        method: EvalMethod,
        context_length: u64,
        /// Documents (prefix) or windows (last stride).
        windows: u64,
        /// Predictions that count.
        tokens: u64,
        #[serde(with = "number")]
        nll: f64,
        /// `exp(nll)`.
        #[serde(with = "number")]
        perplexity: f64,
        /// 95 % bootstrap interval of `nll` over `windows`; equal to `nll` when there is one window.
        #[serde(with = "number")]
        nll_low: f64,
        #[serde(with = "number")]
        nll_high: f64,
        /// Mean NLL of each window, in order: what paired comparisons need.
        #[serde(with = "numbers")]
        window_nll: Vec<f64>,
    },
    /// Mean NLL of the predictions at positions `start..end` (the position of a prediction is the number of tokens it sees).
    PositionNll {
        step: u64,
        split: String,
        start: u64,
        end: u64,
        tokens: u64,
        #[serde(with = "number")]
        nll: f64,
    },
    Sample {
        step: u64,
        prompt: String,
        text: String,
    },
    Checkpoint {
        step: u64,
        /// Relative to the run's folder.
        path: String,
        bytes: u64,
    },
    /// Device memory at the end of a phase (`load`, `forward`, `backward`, `optimizer`, `eval`); on the CPU resident memory.
    Memory {
        step: u64,
        phase: String,
        allocated: u64,
        reserved: u64,
        peak_allocated: u64,
        peak_reserved: u64,
    },
    Warning {
        message: String,
    },
    Heartbeat {
        step: u64,
    },
    /// A command file was acted on, or refused: the outcome then begins with `refused: `.
    Control {
        command: String,
        outcome: String,
        /// The file's name without `.json`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<String>,
    },
    /// The run did all it was asked.
    Finished {
        step: u64,
        tokens: u64,
        seconds: f64,
    },
    /// The run was asked to stop and did; it can be resumed.
    Stopped {
        step: u64,
        reason: String,
    },
    /// Memory ran out: a result.
    OutOfMemory {
        step: u64,
        phase: String,
        /// Bytes asked for, where the allocator said so.
        asked: Option<u64>,
        /// Bytes free at that moment.
        free: Option<u64>,
        /// Bytes there are: the card's, or the cap.
        total: Option<u64>,
        message: String,
    },
    /// The loss left all bounds: a result.
    Diverged {
        step: u64,
        #[serde(with = "number")]
        loss: f64,
        reason: String,
    },
    Failed {
        error: String,
    },
}

impl EventKind {
    /// The ending this event is, as the store calls it; `None` while the run goes on.
    pub fn ending(&self) -> Option<&'static str> {
        match self {
            EventKind::Finished { .. } => Some("finished"),
            EventKind::Stopped { .. } => Some("stopped"),
            EventKind::OutOfMemory { .. } => Some("out_of_memory"),
            EventKind::Diverged { .. } => Some("diverged"),
            EventKind::Failed { .. } => Some("failed"),
            _ => None,
        }
    }
}

/// JSON has no NaN and no infinities: they are written as the strings `"NaN"`, `"Infinity"`, `"-Infinity"`.
pub mod number {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        match *x {
            x if x.is_nan() => serializer.serialize_str("NaN"),
            f64::INFINITY => serializer.serialize_str("Infinity"),
            f64::NEG_INFINITY => serializer.serialize_str("-Infinity"),
            x => serializer.serialize_f64(x),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Finite(f64),
            Word(String),
        }
        match Number::deserialize(deserializer)? {
            Number::Finite(x) => Ok(x),
            Number::Word(word) => match word.as_str() {
                "NaN" => Ok(f64::NAN),
                "Infinity" => Ok(f64::INFINITY),
                "-Infinity" => Ok(f64::NEG_INFINITY),
                _ => Err(de::Error::custom(format!("expected a number, found `{word}`"))),
            },
        }
    }
}

/// As [`number`], for a list.
pub mod numbers {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Number(#[serde(with = "super::number")] f64);

    pub fn serialize<S: Serializer>(numbers: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(numbers.iter().map(|&x| Number(x)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
        let numbers = Vec::<Number>::deserialize(deserializer)?;
        Ok(numbers.into_iter().map(|Number(x)| x).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event {
            v: 1,
            seq: 3,
            time: 1.5,
            elapsed_seconds: 0.25,
            kind: EventKind::Eval {
                step: 2,
                split: "validation".into(),
                loss: f64::NAN,
                tokens: 9,
            },
        };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            line,
            r#"{"v":1,"seq":3,"time":1.5,"elapsed_seconds":0.25,"kind":"eval","step":2,"split":"validation","loss":"NaN","tokens":9}"#
        );
        let back: Event = serde_json::from_str(&line).unwrap();
        assert_eq!(serde_json::to_string(&back).unwrap(), line);
    }

    #[test]
    fn a_window_without_a_number_is_still_an_event() {
        let kind = EventKind::Perplexity {
            step: 2,
            split: "validation".into(),
            method: EvalMethod::Prefix,
            context_length: 8,
            windows: 2,
            tokens: 14,
            nll: f64::NAN,
            perplexity: f64::NAN,
            nll_low: f64::NAN,
            nll_high: f64::NAN,
            window_nll: vec![1.5, f64::NAN, f64::INFINITY],
        };
        let text = serde_json::to_string(&kind).unwrap();
        assert!(text.ends_with(r#""window_nll":[1.5,"NaN","Infinity"]}"#), "{text}");
        let back: EventKind = serde_json::from_str(&text).unwrap();
        assert_eq!(format!("{back:?}"), format!("{kind:?}"));
    }
}
