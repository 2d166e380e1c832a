//! Sweeps: a file becomes points ([`plan`]), points become runs that are driven to their ends ([`drive`]).

mod base;
pub mod drive;
mod identity;
pub mod plan;
pub mod search;

pub use identity::Identities;
