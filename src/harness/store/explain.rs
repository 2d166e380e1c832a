//! What SQLite's errors mean here, and the way out of each.

use super::BUSY_TIMEOUT;
use anyhow::{Error, anyhow};
use rusqlite::ErrorCode;
use std::path::Path;

fn code(error: &Error) -> Option<ErrorCode> {
    error.downcast_ref::<rusqlite::Error>().and_then(rusqlite::Error::sqlite_error_code)
}

/// Whether the file is damaged, or no database at all: what `fathom db rebuild` mends.
pub(super) fn is_damage(error: &Error) -> bool {
    matches!(code(error), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// Names the file in an error of opening it; our own errors name it already.
pub(super) fn opening(path: &Path, error: Error) -> Error {
    let shown = path.display();
    match code(&error) {
        Some(ErrorCode::NotADatabase) => anyhow!(
            "{shown}: expected a database of fathom, found a file that is no database\n  help: `fathom db rebuild` keeps it aside and makes the database anew from the folders of runs"
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => anyhow!(
            "{shown}: another process held the database for {} s\n  help: try again when it is done",
            BUSY_TIMEOUT.as_secs()
        ),
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => anyhow!(
            "{shown}: expected a folder and a file that can be written, found that they can't be: {error:#}\n  help: --results names another results folder"
        ),
        _ if error.downcast_ref::<rusqlite::Error>().is_some() => {
            let help =
                advice(path, &error).map_or(String::new(), |help| format!("\n  help: {help}"));
            anyhow!("{shown}: the database can't be opened: {error:#}{help}")
        }
        _ => error,
    }
}

/// Adds the way out to an error of reading or writing, where there is one.
pub(super) fn using(path: &Path, error: Error) -> Error {
    match advice(path, &error) {
        Some(help) => anyhow!("{error:#}\n  help: {help}"),
        None => error,
    }
}

fn advice(path: &Path, error: &Error) -> Option<String> {
    let shown = path.display();
    match code(error)? {
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(format!(
            "{shown} is damaged: `fathom db rebuild` keeps it aside and makes the database anew from the folders of runs"
        )),
        ErrorCode::DiskFull => Some(format!(
            "nothing is lost, the runs' logs have it: make room where {shown} is, and it is read from there"
        )),
        ErrorCode::ReadOnly | ErrorCode::SystemIoFailure | ErrorCode::CannotOpen => Some(format!(
            "nothing is lost, the runs' logs have it: see that {shown} can be written; `fathom db check` says what it lacks"
        )),
        _ => None,
    }
}
