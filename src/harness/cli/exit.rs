//! Every exit code, with what it means.

/// Everything that was asked for was done. Runs that ended out of memory or diverged are results.
pub const OK: u8 = 0;
/// The command itself failed: a mistake in a file, something missing; nothing half-written is left.
pub const ERROR: u8 = 1;
/// The sweep went through, but some runs ended without a result (failed, killed): the summary names them.
pub const RUNS_FAILED: u8 = 3;
/// Something that fathom needs is missing on this machine (`fathom doctor`).
pub const MISSING: u8 = 4;
/// `fathom db check` found something wrong, or `fathom db rebuild` could not read all that no folder has: it says what.
pub const PROBLEMS: u8 = 8;
/// `fathom reproduce`: some numbers are not the same bits, and all are within the tolerance.
pub const WITHIN_TOLERANCE: u8 = 10;
/// `fathom reproduce`: the run ended otherwise, or a number is further away than the tolerance.
pub const DIFFERENT: u8 = 11;
/// Stopped by Ctrl-C or SIGTERM: the same command goes on.
pub const INTERRUPTED: u8 = 130;
