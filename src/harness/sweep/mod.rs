//! Sweeps: a file becomes points ([`plan`]), points become runs that are driven to their ends ([`drive`]).

mod base;
pub mod drive;
pub mod halving;
mod identity;
pub mod plan;
pub mod schedule;
pub mod search;

pub use identity::Identities;
