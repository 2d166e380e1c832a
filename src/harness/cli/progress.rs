//! Live progress: a line for each running job and one for the whole, or plain lines where nobody watches a terminal.

use crate::sweep::drive::{Ended, Identified, Watcher};
use fathom_spec::record::{Event, EventKind};
use fathom_spec::units::format_number;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::cell::RefCell;
use std::io::IsTerminal;

/// Draws to stderr.
pub struct Progress {
    live: Option<MultiProgress>,
    whole: RefCell<ProgressBar>,
    bars: RefCell<Vec<ProgressBar>>,
    label_width: usize,
}

impl Progress {
    /// `label_width` is that of the longest label.
    pub fn new(label_width: usize) -> Progress {
        let live = std::io::stderr().is_terminal().then(MultiProgress::new);
        Progress {
            live,
            whole: RefCell::new(ProgressBar::hidden()),
            bars: RefCell::default(),
            label_width,
        }
    }

    fn say(&self, line: &str) {
        match &self.live {
            // A closed terminal is no reason to stop the runs.
            Some(live) => drop(live.println(line)),
            None => tell!("{line}"),
        }
    }
}

impl Watcher for Progress {
    fn begin(&self, runs: usize, done: usize) {
        let Some(live) = &self.live else { return };
        let bar = live.add(ProgressBar::new(runs as u64));
        bar.set_style(style("{bar:30.cyan/blue} {pos}/{len} runs, {elapsed} elapsed{msg}"));
        bar.set_position(done as u64);
        *self.whole.borrow_mut() = bar;
    }

    fn more(&self, runs: usize, done: usize) {
        self.whole.borrow().inc_length(runs as u64);
        self.whole.borrow().inc(done as u64);
    }

    fn started(&self, point: &Identified) -> usize {
        let config = &point.point.config;
        let title = format!(
            "{:width$} seed {}",
            point.point.label,
            point.point.seed,
            width = self.label_width
        );
        let bar = match &self.live {
            Some(live) => {
                let bar = live.insert_before(
                    &self.whole.borrow(),
                    ProgressBar::new(config.train.total_tokens.0),
                );
                bar.set_style(style("{prefix} {bar:20} {msg}"));
                bar.set_prefix(title);
                bar.set_message("starting");
                bar
            }
            None => {
                tell!("{} {title}: started", point.run_id());
                ProgressBar::hidden()
            }
        };
        let mut bars = self.bars.borrow_mut();
        bars.push(bar);
        bars.len() - 1
    }

    fn event(&self, line: usize, point: &Identified, event: &Event) {
        let bar = &self.bars.borrow()[line];
        match &event.kind {
            EventKind::Step { step, tokens, loss, tokens_per_second, .. } => {
                let train = &point.point.config.train;
                let left = train.total_tokens.0.saturating_sub(*tokens) as f64
                    / tokens_per_second.max(1.0);
                bar.set_position(*tokens);
                bar.set_message(format!(
                    "step {step}, loss {loss:.3}, {} tokens/s, {} left",
                    format_number(tokens_per_second.round()),
                    fathom_spec::units::format_seconds(left)
                ));
            }
            EventKind::Checkpoint { .. } => bar.set_message("evaluating"),
            EventKind::Warning { message } => {
                self.say(&format!("warning: {}: {message}", point.point.label))
            }
            _ => {}
        }
    }

    fn ended(&self, line: usize, ended: &Ended) {
        let bar = &self.bars.borrow()[line];
        bar.finish_and_clear();
        self.whole.borrow().inc(1);
        let detail =
            ended.detail.as_deref().map(|d| format!(": {}", d.lines().next().unwrap_or(d)));
        let Ended { run_id, label, seed, status, at_rung, .. } = ended;
        let detail = at_rung.map_or(detail, |_| Some(" at its rung".to_string()));
        let width = self.label_width;
        self.say(&format!(
            "{run_id} {label:width$} seed {seed}: {status}{}",
            detail.unwrap_or_default()
        ));
    }

    fn damaged(&self, point: &Identified, error: &anyhow::Error) {
        let error = format!("{error:#}");
        let what = error.split("\n  help: ").next().unwrap_or(&error);
        self.say(&format!(
            "warning: {}: its log is damaged, the store has its result and keeps it: {what}\n  help: put back its log from a backup, or remove \
             runs/{} of the results to make it anew",
            point.point.label,
            point.run_id()
        ));
    }

    fn done_elsewhere(&self) {
        self.whole.borrow().inc(1);
    }

    fn waiting(&self, runs: usize) {
        let runs = if runs == 1 { "a run".to_string() } else { format!("{runs} runs") };
        self.say(&format!("waiting for {runs} that another process has"));
    }

    fn crowded(&self, others: &str) {
        self.say(&format!(
            "waiting for room on the devices: other harnesses have runs at work there: {others}"
        ));
    }

    fn warning(&self, what: &str) {
        self.say(&format!("warning: {what}"));
    }

    fn paused(&self, sweep: &str, running: usize) {
        let rest = match running {
            0 => String::new(),
            1 => "; a run is at work still".to_string(),
            _ => format!("; {running} runs are at work still"),
        };
        self.say(&format!("paused{rest}; `fathom sweep continue {sweep}` lets it go on"));
    }

    fn continued(&self) {
        self.say("going on");
    }

    fn interrupted(&self, times: usize, running: usize) {
        self.say(match times {
            _ if running == 0 => "stopping",
            1 => "stopping: each run writes a checkpoint first; Ctrl-C again ends them at once",
            _ => "ending the runs at once",
        });
    }

    fn finish(&self) {
        self.whole.borrow().finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("a valid template").progress_chars("━╸ ")
}
