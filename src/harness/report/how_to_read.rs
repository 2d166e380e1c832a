//! The section of a page that says what its words and marks mean.

use super::against::Comparisons;
use super::markdown::{in_code, method_name, text};
use super::pareto::{Cost, traded};
use super::summary::{Measure, Summary, TRAINING_LOSS, plain};
use std::collections::BTreeSet;

/// The section; `has_queries` where there is a figure.
pub fn how_to_read(summary: &Summary, comparisons: &Comparisons, has_queries: bool) -> String {
    let mut lines: Vec<String> = Vec::new();
    if !summary.methods.is_empty() {
        lines.push(format!(
            "**Perplexity** is exp of the mean NLL (natural log, per token) over the predictions that count, on the split {}.",
            in_code(&summary.split)
        ));
    }
    for method in &summary.methods {
        lines.push(match method.as_str() {
            "last_stride" => {
                let strides: BTreeSet<String> = summary
                    .comparison
                    .points
                    .iter()
                    .filter_map(|p| Some(plain(p.run.as_ref()?.params.get("eval.last_stride")?)))
                    .collect();
                let stride = match strides.into_iter().collect::<Vec<_>>().as_slice() {
                    [one] => format!("the last {one}"),
                    _ => "the last few (`eval.last_stride`)".to_string(),
                };
                format!("**Last stride**: windows of the context length; only {stride} predictions of each count, so every one sees about the whole length.")
            }
            "prefix" => "**Prefix**: one forward over the first tokens of a document, as many as the context length; all \
                         its predictions count, the early ones that see little too. Documents that are shorter do not count."
                .into(),
            other => format!("**{}**: as the engine defines it.", text(method_name(other))),
        });
    }
    if let Measure::Ceiling { .. } = summary.measure {
        lines.push(
            "**The search** halves the range between a value that finished and one that did not. A run that ran out of \
             memory or diverged counts as one that did not; a run that failed, was killed, stopped or lost counts for \
             nothing."
                .into(),
        );
    } else if summary.measure != Measure::PeakMemory {
        lines.push(format!(
            "**Intervals** are Student's 95 % intervals of the mean over seeds (n - 1 degrees of freedom), taken in nats; \
             those of perplexity are exp of their ends, hence not quite symmetrical: ± is half of their width, and where \
             that would mislead both ends are given. With one seed there are none.{}",
            match summary.methods.is_empty() {
                true => "",
                false => " An NLL's interval takes the evaluated documents as given: it says what other seeds would \
                          give, not other texts.",
            }
        ));
        lines.push(
            "**Not distinguishable**: the 95 % interval of the mean difference from the best, paired by seed (and for \
             perplexity by evaluated window), includes zero or lies within 0.0005 nats of it. With one seed the interval is a \
             percentile bootstrap over windows (10,000 resamples); with one window too there is none, and only the best is bold. These marks are not corrected for the number of comparisons."
                .into(),
        );
        lines.extend(comparisons.how_to_read(summary));
        if Cost::ALL.into_iter().any(|cost| !traded(summary, cost).is_empty()) {
            lines.push(
                "**Front**: the best in quality; then, in turn, the best of those that the last one costs over 10 % more than. Costs \
                 within 10 % of one another are taken for the same; quality counts by the means alone."
                    .into(),
            );
        }
    }
    lines.extend(match summary.loss_key().as_str() {
        _ if matches!(summary.measure, Measure::Ceiling { .. } | Measure::PeakMemory) => None,
        TRAINING_LOSS => Some("**Final loss** is the mean training loss of the last ten steps: no split was evaluated.".into()),
        key => Some( format!("**Final loss** is the last value of {}, in nats per token.", in_code(key))),
    });
    if has_queries {
        lines.push("**The query** of a figure gives the rows of its CSV: `fathom sql - --format csv` reads it from standard input.".into());
    }
    lines.push("**Peak memory** is the largest allocation of any step or phase, on the CPU resident memory; **tokens/s** is the median over steps.".into());
    let lines: Vec<String> = lines.into_iter().map(|line| format!("- {line}")).collect();
    format!("## How to read this\n\n{}\n", lines.join("\n"))
}
