//! The functions that every template can call: paths, times, folders of the user, `getenv`, `raise` and `assert`. Their
//! names are those that templates know them by.

use super::host::Host;
use super::{paths, python};
use chrono::{DateTime, Datelike, FixedOffset, SecondsFormat, Timelike, Utc};
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, Tuple, Value};
use minijinja::{Environment, Error, ErrorKind, State};
use std::fmt;
use std::sync::Arc;

/// A file's time: an ISO 8601 time whose colons became dashes.
const FILE_TIME: &str = "%Y-%m-%dT%H-%M-%S";

/// What a template itself complained about, by `raise` or `assert`.
#[derive(Debug)]
pub(super) struct Raised(pub String);

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// Adds all functions.
pub(super) fn add(env: &mut Environment<'static>, host: &Host) {
    add_paths(env, host);
    add_times(env, host);
    add_folders(env, host);
    let environment = host.environment.clone();
    env.add_function("getenv", move |name: &str, default: Option<Value>, kwargs: Kwargs| {
        let named = kwargs.get::<Option<Value>>("default")?;
        kwargs.assert_all_used()?;
        let value = environment.get(name).map(Value::from);
        Ok::<_, Error>(value.or(default).or(named).unwrap_or(Value::from(())))
    });
    env.add_function("raise", |message: Value| -> Result<Value, Error> {
        Err(raised(python::text(&message)))
    });
    env.add_function(
        "assert",
        |state: &State, condition: Value, message: Option<Value>| -> Result<Value, Error> {
            defined(&condition)?;
            match condition.is_true() {
                true => Ok(Value::from(())),
                false => Err(raised(match message {
                    Some(message) => python::text(&message),
                    None => format!("an assertion of `{}` does not hold", state.name()),
                })),
            }
        },
    );
    let flops = host.peak_hardware_flops;
    env.add_function("get_peak_hardware_flops", move || {
        flops.map(Value::from).unwrap_or(Value::from(()))
    });
    env.add_function("repr", |value: Value| python::repr(&value));
}

fn raised(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message))
}

/// The engine's own error for an undefined value, which remembers what was undefined.
pub(super) fn defined(value: &Value) -> Result<(), Error> {
    if !value.is_undefined() {
        return Ok(());
    }
    let error = value.get_attr("").err();
    Err(error.unwrap_or_else(|| Error::from(ErrorKind::UndefinedError)))
}

/// A path argument: a string, and defined.
fn path(value: &Value) -> Result<String, Error> {
    defined(value)?;
    value.as_str().map(str::to_string).ok_or_else(|| {
        let found = python::repr(value);
        Error::new(ErrorKind::InvalidOperation, format!("expected a path, found `{found}`"))
    })
}

fn add_paths(env: &mut Environment<'static>, host: &Host) {
    let working_directory = host.working_directory.display().to_string();
    env.add_function("joinpath", |parts: Rest<Value>| {
        if parts.is_empty() {
            return Err(Error::from(ErrorKind::MissingArgument));
        }
        Ok(paths::join(&parts.iter().map(path).collect::<Result<Vec<_>, _>>()?))
    });
    env.add_function("normpath", |of: Value| Ok::<_, Error>(paths::normalize(&path(&of)?)));
    let at = working_directory.clone();
    env.add_function("abspath", move |of: Value| Ok::<_, Error>(paths::absolute(&path(&of)?, &at)));
    let at = working_directory.clone();
    env.add_function("relpath", move |of: Value, start: Option<Value>| {
        let start = start.map_or(Ok(".".into()), |start| path(&start))?;
        Ok::<_, Error>(paths::relative(&path(&of)?, &start, &at))
    });
    env.add_function("dirname", |of: Value| Ok::<_, Error>(paths::folder(&path(&of)?).to_string()));
    env.add_function("basename", |of: Value| Ok::<_, Error>(paths::name(&path(&of)?).to_string()));
    env.add_function("splitext", |of: Value| {
        let of = path(&of)?;
        let (root, extension) = paths::split_extension(&of);
        Ok::<_, Error>(Value::from(Tuple::from([Value::from(root), Value::from(extension)])))
    });
    env.add_function("modname_from_path", |of: Value| {
        let of = path(&of)?;
        Ok::<_, Error>(paths::split_extension(paths::name(&of)).0.to_string())
    });
    env.add_function("getcwd", move || working_directory.clone());
}

fn add_folders(env: &mut Environment<'static>, host: &Host) {
    let fixed = |path: std::path::PathBuf| path.display().to_string();
    let home = fixed(host.home.clone());
    env.add_function("user_home_dir", move || home.clone());
    let config = host.folder("XDG_CONFIG_HOME", ".config");
    let shared = fixed(config.join("forgather"));
    env.add_function("forgather_config_dir", move || shared.clone());
    let dot = fixed(host.home.join(".forgather"));
    env.add_function("forgather_home_dir", move || dot.clone());
    let folders = [
        ("user_data_dir", host.folder("XDG_DATA_HOME", ".local/share")),
        ("user_cache_dir", host.folder("XDG_CACHE_HOME", ".cache")),
        ("user_config_dir", config),
        ("site_data_dir", host.site_folder("XDG_DATA_DIRS", "/usr/local/share")),
        ("site_config_dir", host.site_folder("XDG_CONFIG_DIRS", "/etc/xdg")),
    ];
    for (name, folder) in folders {
        // The author only matters on systems that have a folder for each.
        env.add_function(name, move |app: Option<Value>, _author: Option<Value>| {
            let app = app.filter(|app| !app.is_none()).map(|app| path(&app)).transpose()?;
            let folder = app.map_or_else(|| folder.clone(), |app| folder.join(app));
            Ok::<_, Error>(folder.display().to_string())
        });
    }
}

fn add_times(env: &mut Environment<'static>, host: &Host) {
    let local = host.now;
    let utc = local.with_timezone(&Utc).fixed_offset();
    let iso = |time: DateTime<FixedOffset>| time.format("%Y-%m-%dT%H:%M:%S").to_string();
    let times = [
        ("isotime", iso(local)),
        ("utcisotime", format!("{}+00:00", iso(utc))),
        ("filetime", local.format(FILE_TIME).to_string()),
        ("utcfiletime", utc.format(FILE_TIME).to_string()),
    ];
    for (name, time) in times {
        env.add_function(name, move || time.clone());
    }
    env.add_function("now", move || Value::from_object(Moment { time: local, aware: false }));
    env.add_function("utcnow", move || Value::from_object(Moment { time: utc, aware: true }));
}

/// A moment, with what templates use of Python's `datetime`.
#[derive(Debug)]
struct Moment {
    time: DateTime<FixedOffset>,
    /// Whether it prints its offset.
    aware: bool,
}

impl Moment {
    fn iso(&self, separator: char) -> String {
        let precise = self
            .time
            .to_rfc3339_opts(SecondsFormat::Micros, false)
            .replace('T', &separator.to_string());
        match self.aware {
            true => precise,
            // The offset is the last six characters.
            false => precise[..precise.len() - 6].to_string(),
        }
    }
}

impl Object for Moment {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        Some(match key.as_str()? {
            "year" => Value::from(self.time.year()),
            "month" => Value::from(self.time.month()),
            "day" => Value::from(self.time.day()),
            "hour" => Value::from(self.time.hour()),
            "minute" => Value::from(self.time.minute()),
            "second" => Value::from(self.time.second()),
            "microsecond" => Value::from(self.time.timestamp_subsec_micros()),
            _ => return None,
        })
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        match (method, args) {
            ("strftime", [format]) => {
                let format = path(format)?;
                let mut text = String::new();
                fmt::Write::write_fmt(&mut text, format_args!("{}", self.time.format(&format)))
                    .map_err(|_| {
                        let message = format!("expected a time format, found `{format}`");
                        Error::new(ErrorKind::InvalidOperation, message)
                    })?;
                Ok(Value::from(text))
            }
            ("isoformat", []) => Ok(Value::from(self.iso('T'))),
            ("timestamp", []) => Ok(Value::from(self.time.timestamp_micros() as f64 / 1e6)),
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iso(' '))
    }
}
