//! The text of an event log, read for the store. Nine lines of ten are steps: they have a way of their own, which takes no
//! detour over a tree of values; every other line, and a step that is written otherwise than expected, is read as an event.

use anyhow::{Context, Result};
use fathom_spec::record::{Event, EventKind, MAX_SEQ, open_log};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

/// The whole lines of a stretch of a log.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    pub lines: Vec<Line>,
    /// The byte after the last of them.
    pub end: u64,
    /// Bytes after it: a line without its end, which a writer is about to finish or a killed one left.
    pub torn: u64,
}

#[derive(Debug)]
pub(super) enum Line {
    Step(Step),
    Other(Box<Event>),
}

impl Line {
    pub fn seq(&self) -> u64 {
        match self {
            Line::Step(step) => step.seq,
            Line::Other(event) => event.seq,
        }
    }

    pub fn elapsed_seconds(&self) -> f64 {
        match self {
            Line::Step(step) => step.elapsed_seconds,
            Line::Other(event) => event.elapsed_seconds,
        }
    }
}

/// What the store takes of a step.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    pub seq: u64,
    pub elapsed_seconds: f64,
    pub step: u64,
    pub tokens: u64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    pub step_seconds: f64,
    pub tokens_per_second: f64,
    pub peak_allocated: u64,
    pub peak_reserved: u64,
}

/// What every step logs.
pub const STEP_SCALARS: [&str; 8] = [
    "loss",
    "learning_rate",
    "grad_norm",
    "step_seconds",
    "tokens_per_second",
    "tokens",
    "peak_allocated",
    "peak_reserved",
];

impl Step {
    /// That of an event, if it is of a step.
    pub fn of(event: &Event) -> Option<Step> {
        let EventKind::Step {
            step,
            tokens,
            loss,
            learning_rate,
            grad_norm,
            step_seconds,
            tokens_per_second,
            peak_allocated,
            peak_reserved,
        } = event.kind
        else {
            return None;
        };
        Some(Step {
            seq: event.seq,
            elapsed_seconds: event.elapsed_seconds,
            step,
            tokens,
            loss,
            learning_rate,
            grad_norm,
            step_seconds,
            tokens_per_second,
            peak_allocated,
            peak_reserved,
        })
    }

    /// Its scalars under their names, always in this order.
    pub fn scalars(&self) -> [(&'static str, f64); 8] {
        let values = [
            self.loss,
            self.learning_rate,
            self.grad_norm,
            self.step_seconds,
            self.tokens_per_second,
            self.tokens as f64,
            self.peak_allocated as f64,
            self.peak_reserved as f64,
        ];
        std::array::from_fn(|at| (STEP_SCALARS[at], values[at]))
    }
}

/// Reads the whole lines from byte `offset` on; none where there is no file.
///
/// # Errors
///
/// When the file can't be read, or a finished line is no event: the message names the file and the byte it begins at.
pub(super) fn read(path: &Path, offset: u64) -> Result<Stretch> {
    let mut text = Vec::new();
    match open_log(path) {
        Ok(mut file) => {
            file.seek(SeekFrom::Start(offset))?;
            file.read_to_end(&mut text)
                .with_context(|| format!("{}: the event log can't be read", path.display()))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => {
            return Err(error)
                .with_context(|| format!("{}: the event log can't be opened", path.display()));
        }
    }
    let mut stretch = Stretch { lines: Vec::new(), end: offset, torn: 0 };
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        if !line.ends_with(b"\n") {
            stretch.torn = line.len() as u64;
            break;
        }
        let parsed = parse(line).with_context(|| {
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]).trim().to_string();
            format!("{}: byte {}: expected an event, found `{shown}`", path.display(), stretch.end)
        })?;
        stretch.lines.push(parsed);
        stretch.end += line.len() as u64;
    }
    Ok(stretch)
}

fn parse(line: &[u8]) -> Result<Line, serde_json::Error> {
    if let Ok(step) = serde_json::from_slice::<WrittenStep>(line)
        && step.kind == "step"
        && step.seq <= MAX_SEQ
    {
        return Ok(Line::Step(Step {
            seq: step.seq,
            elapsed_seconds: step.elapsed_seconds,
            step: step.step,
            tokens: step.tokens,
            loss: step.loss.0,
            learning_rate: step.learning_rate.0,
            grad_norm: step.grad_norm.0,
            step_seconds: step.step_seconds.0,
            tokens_per_second: step.tokens_per_second.0,
            peak_allocated: step.peak_allocated,
            peak_reserved: step.peak_reserved,
        }));
    }
    let event: Event = serde_json::from_slice(line)?;
    Ok(match Step::of(&event) {
        Some(step) => Line::Step(step),
        None => Line::Other(Box::new(event)),
    })
}

/// A step's line as it is written. The first key that is another kind's ends the attempt to read it so.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenStep<'a> {
    #[serde(rename = "v")]
    _v: u32,
    seq: u64,
    #[serde(rename = "time")]
    _time: f64,
    elapsed_seconds: f64,
    #[serde(borrow)]
    kind: &'a str,
    step: u64,
    tokens: u64,
    loss: Number,
    learning_rate: Number,
    grad_norm: Number,
    step_seconds: Number,
    tokens_per_second: Number,
    peak_allocated: u64,
    peak_reserved: u64,
}

/// A number, or one of the words that stand for what JSON has no number for.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number")
            }
            fn visit_f64<E: Error>(self, x: f64) -> Result<Number, E> {
                Ok(Number(x))
            }
            fn visit_u64<E: Error>(self, n: u64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }
            fn visit_i64<E: Error>(self, n: i64) -> Result<Number, E> {
                Ok(Number(n as f64))
            }
            fn visit_str<E: Error>(self, word: &str) -> Result<Number, E> {
                match word {
                    "NaN" => Ok(Number(f64::NAN)),
                    "Infinity" => Ok(Number(f64::INFINITY)),
                    "-Infinity" => Ok(Number(f64::NEG_INFINITY)),
                    _ => Err(E::custom(format!("expected a number, found `{word}`"))),
                }
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        /// Both ways of reading a step come to the same, down to the last bit.
        #[test]
        fn a_step_is_read_as_the_event_it_is(
            numbers in proptest::array::uniform5(proptest::num::f64::ANY),
            counts in proptest::array::uniform5(0u64..1 << 60),
        ) {
            let [loss, learning_rate, grad_norm, step_seconds, tokens_per_second] = numbers;
            let [seq, step, tokens, peak_allocated, peak_reserved] = counts;
            let kind = EventKind::Step {
                step, tokens, loss, learning_rate, grad_norm, step_seconds, tokens_per_second, peak_allocated, peak_reserved,
            };
            let event = Event { v: 1, seq, time: 1.5, elapsed_seconds: 0.25, kind };
            let written = serde_json::to_string(&event).unwrap();
            serde_json::from_str::<WrittenStep>(&written).expect("the fast way reads what we write");
            // Out of its order it is read as any event.
            let mut other: serde_json::Value = serde_json::from_str(&written).unwrap();
            other["unknown"] = "key".into();
            let fast = parse(written.as_bytes()).unwrap();
            let slow = parse(other.to_string().as_bytes()).unwrap();
            proptest::prop_assert_eq!(format!("{fast:?}"), format!("{slow:?}"));
        }
    }
}
