//! What goes wrong between a template and its graph, with the stage that it happened in.

use crate::config::written::Origin;
use std::fmt;

/// The way from a template to a graph has two stages; callers that report to machines tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Finding, translating and rendering templates.
    Preprocess,
    /// Reading the rendered text as YAML and building the graph.
    Yaml,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Preprocess => "preprocess",
            Stage::Yaml => "yaml",
        })
    }
}

/// An error of the template language. It stands at the root of every `anyhow::Error` that this module returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    pub stage: Stage,
    /// The template line that is to blame; nothing where no template got that far.
    pub origin: Option<Origin>,
    pub message: String,
    pub help: Option<String>,
}

impl Error {
    pub(super) fn yaml(origin: &Origin, message: impl Into<String>) -> Error {
        Error {
            stage: Stage::Yaml,
            origin: Some(origin.clone()),
            message: message.into(),
            help: None,
        }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Error {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(origin) = &self.origin {
            write!(f, "{origin}: ")?;
        }
        f.write_str(&self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}
