//! Every component there is.

mod data;
mod optimizers;
mod training;
mod values;

use super::Component;

/// All components, in the order of their roles.
pub fn all() -> impl Iterator<Item = &'static Component> {
    [training::COMPONENTS, data::COMPONENTS, optimizers::COMPONENTS, values::COMPONENTS]
        .into_iter()
        .flatten()
}

pub use data::{BLOCK_TOKENIZE_FN, MAP_KWARGS};
pub use training::TRAINING_ARGUMENTS;
