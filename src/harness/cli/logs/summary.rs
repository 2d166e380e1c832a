//! How runs went, in numbers.

use super::Log;
use crate::cli::table::{Cell, Format, Table, rounded};
use crate::export::curves::Curves;
use clap::ValueEnum;
use fathom_spec::units::{Bytes, Tokens, format_seconds};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SummaryFormat {
    /// A page a run
    #[default]
    Text,
    /// A line a run
    OneLine,
    /// A list of objects
    Json,
    /// A row a run
    Csv,
    /// A table of GitHub's markdown
    Md,
}

/// A value and the step that had it.
type At = Option<(u64, f64)>;

/// What is said of one run; losses are nats per token, times seconds, memory bytes.
struct Summary<'a> {
    log: &'a Log,
    steps: u64,
    tokens: Option<f64>,
    final_loss: At,
    average_loss: Option<f64>,
    best_loss: At,
    final_eval_loss: At,
    best_eval_loss: At,
    average_grad_norm: Option<f64>,
    highest_grad_norm: At,
    first_learning_rate: At,
    highest_learning_rate: At,
    final_learning_rate: At,
    tokens_per_second: Option<f64>,
    steps_per_second: Option<f64>,
    peak_allocated: At,
    peak_reserved: At,
}

/// The summaries of runs in a format.
pub fn render(logs: &[Log], format: SummaryFormat) -> String {
    let summaries: Vec<Summary> = logs.iter().map(Summary::of).collect();
    match format {
        SummaryFormat::Text => summaries.iter().map(Summary::page).collect::<Vec<_>>().join("\n"),
        SummaryFormat::OneLine => summaries.iter().map(Summary::line).collect(),
        SummaryFormat::Json => table(&summaries).render(Format::Json),
        SummaryFormat::Csv => table(&summaries).render(Format::Csv),
        SummaryFormat::Md => table(&summaries).render(Format::Markdown),
    }
}

impl Summary<'_> {
    fn of(log: &Log) -> Summary<'_> {
        let curves = &log.curves;
        let of = |key: &str| curves.scalars.get(key).map_or(&[][..], Vec::as_slice);
        // The split that is held out, whatever it is called.
        let is_eval = |key: &&String| key.starts_with("eval_loss.");
        let eval = of(curves.scalars.keys().find(is_eval).map_or("", String::as_str));
        let step_seconds: f64 = of("step_seconds").iter().map(|(_, seconds)| seconds).sum();
        let tokens = of("tokens").last().map(|(_, tokens)| *tokens);
        let loss = of("loss");
        let first_tokens = of("tokens").first().map_or(0.0, |(_, tokens)| *tokens);
        // Over the steps themselves, not over loading and evaluating; the first step warms up where there are others.
        let steady = step_seconds - of("step_seconds").first().map_or(0.0, |(_, seconds)| *seconds);
        let tokens_per_second = match (tokens, loss.len()) {
            (Some(tokens), 2..) if steady > 0.0 => Some((tokens - first_tokens) / steady),
            _ => of("tokens_per_second").last().map(|(_, speed)| *speed),
        };
        Summary {
            log,
            steps: loss.last().map_or(0, |(step, _)| *step),
            tokens,
            final_loss: loss.last().copied(),
            average_loss: mean(loss),
            best_loss: least(loss),
            final_eval_loss: eval.last().copied(),
            best_eval_loss: least(eval),
            average_grad_norm: mean(of("grad_norm")),
            highest_grad_norm: most(of("grad_norm")),
            first_learning_rate: of("learning_rate").first().copied(),
            highest_learning_rate: most(of("learning_rate")),
            final_learning_rate: of("learning_rate").last().copied(),
            tokens_per_second,
            steps_per_second: (step_seconds > 0.0).then(|| loss.len() as f64 / step_seconds),
            peak_allocated: most(of("peak_allocated")),
            peak_reserved: most(of("peak_reserved")),
        }
    }

    fn page(&self) -> String {
        let curves = &self.log.curves;
        let title = curves.name();
        let mut text = format!("{title}\n{}\n", "=".repeat(title.chars().count()));
        let mut line = |what: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!("{what:<20}{value}\n"));
            }
        };
        let at = |at: At| at.map(|(step, x)| format!("{} at step {step}", rounded(x)));
        let plain = |at: At| at.map(|(_, x)| rounded(x));
        let bytes = |at: At| at.map(|(_, x)| Bytes(x as u64).to_string());
        line("run", Some(format!("{} ({})", curves.run_id, self.log.folder.display())));
        if let Some((sweep, ..)) = &curves.point {
            line("sweep", Some(sweep.clone()));
        }
        line("status", Some(curves.status.clone()));
        line("time", Some(format_seconds(curves.seconds)));
        line("steps", Some(self.steps.to_string()));
        line("tokens", self.tokens.map(|n| Tokens(n as u64).to_string()));
        line("final loss", plain(self.final_loss));
        line("average loss", self.average_loss.map(rounded));
        line("best loss", at(self.best_loss));
        line("final held-out loss", at(self.final_eval_loss));
        line("best held-out loss", at(self.best_eval_loss));
        line("tokens/s", self.tokens_per_second.map(|x| format!("{x:.1}")));
        line("steps/s", self.steps_per_second.map(|x| format!("{x:.3}")));
        line("mean grad norm", self.average_grad_norm.map(rounded));
        line("highest grad norm", at(self.highest_grad_norm));
        let rates =
            [self.first_learning_rate, self.highest_learning_rate, self.final_learning_rate];
        let [first, highest, last] = rates.map(plain);
        line(
            "learning rate",
            first.zip(highest).zip(last).map(|((first, highest), last)| {
                format!("{first} at first, {highest} at most, {last} at last")
            }),
        );
        line("peak allocated", bytes(self.peak_allocated));
        line("peak reserved", bytes(self.peak_reserved));
        text
    }

    fn line(&self) -> String {
        let number = |at: At| at.map_or("-".into(), |(_, x)| rounded(x));
        format!(
            "{} | {} | steps={} | time={} | loss={} | best={} | eval={} | tok/s={} | peak={}\n",
            self.log.curves.name(),
            self.log.curves.status,
            self.steps,
            format_seconds(self.log.curves.seconds),
            number(self.final_loss),
            number(self.best_loss),
            number(self.final_eval_loss),
            self.tokens_per_second.map_or("-".into(), |x| format!("{x:.1}")),
            self.peak_allocated.map_or("-".into(), |(_, x)| Bytes(x as u64).to_string()),
        )
    }
}

fn table(summaries: &[Summary]) -> Table {
    let value = |at: At| Cell::from(at.map(|(_, x)| Cell::Real(x)));
    let step = |at: At| Cell::from(at.map(|(step, _)| Cell::Integer(step as i64)));
    let whole = |x: Option<f64>| Cell::from(x.map(|x| Cell::Integer(x as i64)));
    let real = |x: Option<f64>| Cell::from(x.map(Cell::Real));
    let mut table = Table::new(&[]);
    for summary in summaries {
        let curves: &Curves = &summary.log.curves;
        let cells: Vec<(&str, Cell)> = vec![
            ("run_name", curves.name().into()),
            ("run_id", curves.run_id.clone().into()),
            ("log_path", summary.log.folder.display().to_string().into()),
            ("status", curves.status.clone().into()),
            ("total_steps", Cell::Integer(summary.steps as i64)),
            ("total_tokens", whole(summary.tokens)),
            ("final_loss", value(summary.final_loss)),
            ("avg_loss", real(summary.average_loss)),
            ("best_loss", value(summary.best_loss)),
            ("best_loss_step", step(summary.best_loss)),
            ("final_eval_loss", value(summary.final_eval_loss)),
            ("final_eval_loss_step", step(summary.final_eval_loss)),
            ("best_eval_loss", value(summary.best_eval_loss)),
            ("best_eval_loss_step", step(summary.best_eval_loss)),
            ("avg_grad_norm", real(summary.average_grad_norm)),
            ("max_grad_norm_value", value(summary.highest_grad_norm)),
            ("max_grad_norm_step", step(summary.highest_grad_norm)),
            ("initial_lr", value(summary.first_learning_rate)),
            ("max_lr", value(summary.highest_learning_rate)),
            ("final_lr", value(summary.final_learning_rate)),
            ("train_runtime", Cell::Real(curves.seconds)),
            ("tokens_per_second", real(summary.tokens_per_second)),
            ("train_steps_per_second", real(summary.steps_per_second)),
            ("peak_allocated", whole(summary.peak_allocated.map(|(_, x)| x))),
            ("peak_reserved", whole(summary.peak_reserved.map(|(_, x)| x))),
        ];
        if table.columns.is_empty() {
            table.columns = cells.iter().map(|(name, _)| name.to_string()).collect();
        }
        table.rows.push(cells.into_iter().map(|(_, cell)| cell).collect());
    }
    table
}

/// Over the values that are numbers.
fn mean(values: &[(u64, f64)]) -> Option<f64> {
    let finite: Vec<f64> = values.iter().map(|(_, x)| *x).filter(|x| x.is_finite()).collect();
    (!finite.is_empty()).then(|| finite.iter().sum::<f64>() / finite.len() as f64)
}

/// The first of the least.
fn least(values: &[(u64, f64)]) -> At {
    let numbers = values.iter().copied().filter(|(_, x)| !x.is_nan());
    numbers.reduce(|best, next| if next.1 < best.1 { next } else { best })
}

/// The first of the highest.
fn most(values: &[(u64, f64)]) -> At {
    let numbers = values.iter().copied().filter(|(_, x)| !x.is_nan());
    numbers.reduce(|best, next| if next.1 > best.1 { next } else { best })
}
