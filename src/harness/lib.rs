//! The harness: it plans sweeps, supervises worker processes, keeps the store and writes reports. It links no LibTorch.

pub mod cli;
pub mod export;
pub mod report;
pub mod run;
pub mod store;
pub mod sweep;
