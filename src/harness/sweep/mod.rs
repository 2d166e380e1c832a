//! Sweeps: a file becomes points ([`plan`]), points become runs that are driven to their ends ([`drive`]). [`why`] says what makes
//! a point new, [`code`] which code made a run, [`reproduce`] how two runs of one configuration differ.

mod base;
pub mod code;
pub mod drive;
mod fits;
pub mod halving;
mod identity;
pub mod plan;
pub mod reproduce;
pub mod schedule;
pub mod search;
pub mod why;

pub use fits::Fits;
pub use identity::Identities;
