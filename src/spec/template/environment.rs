//! The template engine as the language needs it: strict, without escaping, printing like Python, loading by search path.

use super::host::Host;
use super::library::Library;
use super::{filters, functions, methods, python};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value};
use minijinja::{AutoEscape, Environment, UndefinedBehavior};
use serde_json::{Map, Value as Json};
use std::borrow::Cow;
use std::sync::{Arc, Mutex};

/// How deep blocks may lie in blocks; an include counts ten times.
const RECURSION_LIMIT: usize = 300;

/// The stack that this depth needs, also without optimization.
const STACK_BYTES: usize = 16 << 20;

/// Runs `work` where the depth that the engine allows can't overflow the stack.
pub(super) fn with_deep_stack<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn_scoped(scope, work);
        let thread = thread.expect("a thread can be started");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Makes an engine that loads from `library`.
pub(super) fn new(
    host: &Host,
    globals: &Map<String, Json>,
    library: &Arc<Mutex<Library>>,
) -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).build();
    env.set_syntax(syntax.expect("the usual delimiters are valid"));
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_debug(true);
    env.set_recursion_limit(RECURSION_LIMIT);
    env.set_formatter(|out, _, value| match value.is_undefined() {
        // An `if` without an `else`.
        true => Ok(()),
        false => Ok(out.write_str(&python::text(value))?),
    });
    env.set_unknown_method_callback(methods::call);
    filters::add(&mut env);
    functions::add(&mut env, host);
    env.add_function("cycler", |items: Rest<Value>| {
        minijinja_contrib::globals::cycler(items.to_vec())
    });
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    for (name, value) in globals {
        env.add_global(name.clone(), from_json(value));
    }
    let loader = library.clone();
    env.set_loader(move |name| lock(&loader).load(name));
    let watcher = library.clone();
    env.set_path_join_callback(move |name, parent| {
        lock(&watcher).asked(name, parent);
        Cow::Borrowed(name)
    });
    env
}

/// A lock that a panic elsewhere does not spoil.
pub(super) fn lock(library: &Mutex<Library>) -> std::sync::MutexGuard<'_, Library> {
    library.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A template variable from a plain value.
pub fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(n), _) => Value::from(n),
            (None, Some(n)) => Value::from(n),
            (None, None) => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(map) => {
            Value::from_pairs(map.iter().map(|(key, value)| (key.as_str(), from_json(value))))
        }
    }
}
