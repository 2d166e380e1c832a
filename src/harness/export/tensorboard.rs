//! TensorBoard's event files: records of protobuf messages, each with its length and two checksums.
//!
//! A record is its length (u64), the masked CRC-32C of that, the message, and the masked CRC-32C of the message, all little
//! endian (`tensorflow/core/lib/io/record_writer.h`). The messages are `Event` and what it holds
//! (`tensorboard/compat/proto/{event,summary,tensor}.proto`); of those we write, the field numbers stand beside each.

use super::curves::Curves;
use std::collections::BTreeMap;

/// The events of a run after step `after` as a file; without a step, all of them, with the configuration before them.
///
/// Scalars keep the store's names, but for a `/` in place of each `.`, by which TensorBoard groups them; samples and the
/// configuration are texts.
pub fn encode(curves: &Curves, after: Option<u64>) -> Vec<u8> {
    let mut file = Vec::new();
    record(&mut file, &event(curves.started_at, 0, |e| e.text(3, "brain.Event:2")));
    if after.is_none() && !curves.params.is_empty() {
        let settings: String =
            curves.params.iter().map(|(key, value)| format!("    {key}: {value}\n")).collect();
        let summary = Message::new(|m| m.message(1, &text_value("config", &settings)));
        record(&mut file, &event(curves.started_at, 0, |e| e.message(5, &summary)));
    }
    let mut by_step: BTreeMap<u64, Vec<Message>> = BTreeMap::new();
    let is_new = |step: u64| after.is_none_or(|after| step > after);
    for (key, values) in &curves.scalars {
        let tag = key.replace('.', "/");
        for &(step, value) in values.iter().filter(|(step, _)| is_new(*step)) {
            by_step.entry(step).or_default().push(scalar_value(&tag, value));
        }
    }
    for (step, prompt, text) in curves.samples.iter().filter(|(step, ..)| is_new(*step)) {
        // Markdown, indented: shown as it was written.
        let text: String =
            format!("{prompt}{text}").lines().map(|line| format!("    {line}\n")).collect();
        by_step.entry(*step).or_default().push(text_value("samples", &text));
    }
    for (step, values) in by_step {
        let summary = Message::new(|m| values.iter().for_each(|value| m.message(1, value)));
        record(&mut file, &event(curves.time_of(step), step, |e| e.message(5, &summary)));
    }
    file
}

/// The name of a run's file; TensorBoard reads those with `tfevents` in their name, in the order of their names.
pub fn file_name(curves: &Curves, part: u32) -> String {
    format!("events.out.tfevents.{:010}.fathom.{part:04}", curves.started_at as u64)
}

/// `Event`: wall_time 1, step 2, file_version 3, summary 5.
fn event(time: f64, step: u64, what: impl FnOnce(&mut Message)) -> Message {
    Message::new(|m| {
        m.double(1, time);
        m.integer(2, step);
        what(m);
    })
}

/// `Summary.Value`: tag 1, simple_value 2.
fn scalar_value(tag: &str, value: f64) -> Message {
    Message::new(|m| {
        m.text(1, tag);
        m.float(2, value as f32);
    })
}

/// `Summary.Value`: tag 1, tensor 8, metadata 9. The tensor has dtype 1 (DT_STRING is 7), a shape 2 with one dimension of
/// size 1, and string_val 8; the metadata has plugin_data 1 with plugin_name 1.
fn text_value(tag: &str, text: &str) -> Message {
    let dimension = Message::new(|m| m.integer(1, 1));
    let shape = Message::new(|m| m.message(2, &dimension));
    let tensor = Message::new(|m| {
        m.integer(1, 7);
        m.message(2, &shape);
        m.text(8, text);
    });
    let plugin = Message::new(|m| m.text(1, "text"));
    let metadata = Message::new(|m| m.message(1, &plugin));
    Message::new(|m| {
        m.text(1, tag);
        m.message(8, &tensor);
        m.message(9, &metadata);
    })
}

fn record(file: &mut Vec<u8>, message: &Message) {
    let length = (message.0.len() as u64).to_le_bytes();
    file.extend(length);
    file.extend(masked_crc(&length).to_le_bytes());
    file.extend(&message.0);
    file.extend(masked_crc(&message.0).to_le_bytes());
}

/// A checksum of data that may hold checksums: rotated and shifted.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A message of protobuf, as it is written: fields in a row, each with its number and wire type.
struct Message(Vec<u8>);

impl Message {
    fn new(fill: impl FnOnce(&mut Message)) -> Message {
        let mut message = Message(Vec::new());
        fill(&mut message);
        message
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.0.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.0.push(n as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// As the third version of protobuf has it, 0 is what a number is that is not there.
    fn integer(&mut self, field: u64, n: u64) {
        if n > 0 {
            self.key(field, 0);
            self.varint(n);
        }
    }

    fn double(&mut self, field: u64, x: f64) {
        self.key(field, 1);
        self.0.extend(x.to_le_bytes());
    }

    fn float(&mut self, field: u64, x: f32) {
        self.key(field, 5);
        self.0.extend(x.to_le_bytes());
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Message) {
        self.bytes(field, &message.0);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curves() -> Curves {
        Curves {
            started_at: 1_767_225_600.0,
            params: BTreeMap::from([
                ("model.path".into(), "tiny".into()),
                ("train.seed".into(), 3.into()),
            ]),
            scalars: BTreeMap::from([
                ("loss".into(), vec![(1, 3.25), (300, 0.1)]),
                ("eval_loss.validation".into(), vec![(300, f64::INFINITY)]),
            ]),
            times: BTreeMap::from([(1, 1_767_225_601.5), (300, 1_767_225_603.0)]),
            samples: vec![(300, "Once ".into(), "upon\na time".into())],
            ..Curves::default()
        }
    }

    /// `tests/data/tensorboard.tfevents` was written by the package `tensorboard` 2.21 itself: `Event(...)` of
    /// `tensorboard.compat.proto.event_pb2` with these values, through
    /// `tensorboard.summary.writer.record_writer.RecordWriter(file).write(event.SerializeToString())`.
    #[test]
    fn a_file_is_what_tensorboard_writes() {
        let golden = include_bytes!("../../../tests/data/tensorboard.tfevents");
        assert_eq!(encode(&curves(), None), golden);
    }

    #[test]
    fn a_later_file_has_what_came_later() {
        let all = encode(&curves(), None);
        let later = encode(&curves(), Some(1));
        // The last record is the same in both; the configuration and the first step are not in the later.
        assert!(later.len() < all.len() && all.ends_with(&later[later.len() - 100..]));
        let has = |file: &[u8], text: &[u8]| file.windows(text.len()).any(|window| window == text);
        assert!(has(&all, b"config") && !has(&later, b"config") && has(&later, b"samples"));
        assert!(!has(&encode(&curves(), Some(300)), b"loss"));
    }
}
