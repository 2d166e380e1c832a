//! `fathom top`: the runs at work, live in the terminal.
//!
//! It reads the runs' folders and the store; any number may look on, from any host that sees the folder.

mod state;
mod view;

use super::runs::known_sweep;
use crate::run::read_store;
use crate::store::Store;
use anyhow::{Context, Result, bail};
use clap::Args;
use fathom_spec::record::now;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use state::State;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::Duration;

/// Watch the runs at work: step, speed, loss, memory, and when each will be done; q quits.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Also runs that are over, those that ended last first
    #[arg(long)]
    pub all: bool,
    /// Only the points of this sweep
    #[arg(long)]
    pub sweep: Option<String>,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    pub interval: f64,
    /// The folder that fathom.db is in
    #[arg(long, value_name = "DIR", default_value_os_t = crate::cli::context::default_results())]
    pub results: PathBuf,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("expected seconds from 0.1 to 3600, found `{text}`")),
    }
}

/// Carries out `fathom top`.
///
/// # Errors
///
/// When standard output is no terminal, or the store can't be read.
pub fn run(args: TopArgs) -> Result<()> {
    // What ended before is set right once; what ends from now on is looked at in the runs' folders.
    drop(read_store(&args.results)?);
    let store = Store::open_read_only(&args.results)?;
    if let Some(sweep) = &args.sweep {
        known_sweep(&store, sweep)?;
    }
    if !std::io::stdout().is_terminal() {
        bail!(
            "top: expected a terminal to draw in, found none\n  help: `fathom runs ls --status running` prints a list"
        );
    }
    let mut state = State::new(args.all, args.sweep.clone());
    state.look(&store, now())?;
    // The terminal is given back whatever happens, a panic included.
    let mut terminal = ratatui::try_init().context("top: the terminal can't be used")?;
    let watched = watch(&mut terminal, &store, &mut state, Duration::from_secs_f64(args.interval));
    ratatui::restore();
    watched
}

fn watch(
    terminal: &mut ratatui::DefaultTerminal,
    store: &Store,
    state: &mut State,
    interval: Duration,
) -> Result<()> {
    loop {
        terminal.draw(|frame| view::draw(frame, state))?;
        if event::poll(interval)?
            && let Event::Key(key) = event::read()?
        {
            let interrupt =
                key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                _ if interrupt => return Ok(()),
                KeyCode::Char('a') => state.all = !state.all,
                KeyCode::Down | KeyCode::Char('j') => state.scroll(1),
                KeyCode::Up | KeyCode::Char('k') => state.scroll(-1),
                _ => {}
            }
        }
        state.look(store, now())?;
    }
}
