//! What templates may ask of the machine: the user's folders, the environment, the time. Read once, so that a rendering sees
//! one moment, and a parameter, so that tests need no particular user.

use chrono::{DateTime, FixedOffset, Local};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The machine as templates see it.
#[derive(Debug, Clone)]
pub struct Host {
    pub home: PathBuf,
    pub working_directory: PathBuf,
    /// What `getenv` reads.
    pub environment: BTreeMap<String, String>,
    /// What `now()` and its kin tell, with the local offset from UTC.
    pub now: DateTime<FixedOffset>,
    /// The bfloat16 operations per second that one device can do, where the user wrote it down.
    pub peak_hardware_flops: Option<f64>,
}

/// Where the user writes down what their devices can do, below the home.
const HARDWARE_FILE: &str = ".forgather/hardware.yaml";

impl Host {
    /// This process: its environment, folders and clock.
    pub fn of_process() -> Host {
        let home = directories::BaseDirs::new().map(|dirs| dirs.home_dir().to_path_buf());
        let home = home.unwrap_or_else(|| PathBuf::from("/"));
        Host {
            peak_hardware_flops: peak_hardware_flops(&home.join(HARDWARE_FILE)),
            home,
            working_directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            environment: std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
            now: Local::now().fixed_offset(),
        }
    }

    /// A folder of the user: where `variable` says, else below the home.
    pub(super) fn folder(&self, variable: &str, below_home: &str) -> PathBuf {
        match self.environment.get(variable).filter(|value| !value.trim().is_empty()) {
            Some(folder) => PathBuf::from(folder),
            None => self.home.join(below_home),
        }
    }

    /// A folder of the machine: the first that `variable` lists, else `default`.
    pub(super) fn site_folder(&self, variable: &str, default: &str) -> PathBuf {
        let listed = self.environment.get(variable).filter(|value| !value.trim().is_empty());
        let first = listed.and_then(|list| list.split(':').next());
        PathBuf::from(first.unwrap_or(default))
    }
}

fn peak_hardware_flops(file: &Path) -> Option<f64> {
    let text = std::fs::read_to_string(file).ok()?;
    let hardware: serde_json::Value = serde_yaml::from_str(&text).ok()?;
    hardware.get("peak_hardware_flops")?.as_f64()
}
