//! Where events go, and the facts among them: what the leaves of the code met, under the key path that asked for it.

use fathom_spec::record::EventKind;
use serde_json::Value;

/// Takes the events of a run: the log in a worker, a list in a test.
pub trait Sink {
    fn event(&mut self, kind: EventKind);

    /// Records a value as the leaf met it; `name` is the key path that it answers to.
    fn fact(&mut self, name: &str, value: impl Into<Value>)
    where
        Self: Sized,
    {
        self.event(EventKind::Fact { name: name.to_string(), value: value.into() });
    }
}

impl Sink for Vec<EventKind> {
    fn event(&mut self, kind: EventKind) {
        self.push(kind);
    }
}
