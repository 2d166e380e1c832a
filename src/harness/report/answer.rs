//! The answer of a report: which label is best, by how much, how sure that is, and what is missing.

use super::difference::Difference;
use super::input::Point;
use super::memory::{Costs, percent};
use super::page::{
    as_sure_as, bold, bytes, capital, in_code, method_name, name_of_loss, text, without_paths,
};
use super::plot::axis::length_label;
use super::rungs::is_stopped_at_rung;
use super::sensitivity;
use super::statistics::Interval;
use super::summary::{Ceiling, Measure, Summary, plain};
use fathom_spec::units::{Bytes, format_number};

/// The paragraphs of the answer, the first sentence first.
pub fn answer(summary: &Summary) -> Vec<String> {
    let mut paragraphs = match &summary.measure {
        Measure::Ceiling { parameter } => ceilings(summary, parameter),
        Measure::PeakMemory => vec![least_memory(summary)],
        measure => vec![best_label(summary, measure)],
    };
    paragraphs.extend(rope_phenomenon(summary));
    paragraphs.extend(sensitivity::headline(summary));
    paragraphs.extend(failures(summary));
    paragraphs
}

/// The answer in one line: its first sentence, or what each search found.
pub fn headline(summary: &Summary) -> String {
    if let Measure::Ceiling { parameter } = &summary.measure {
        let (_, ceilings) = summary.ceilings(parameter);
        let found = ceilings.iter().map(|ceiling| {
            let largest = ceiling.largest.map_or("none finished".into(), whole);
            let above = match &ceiling.smallest_not {
                Some((value, _)) => format!(" (not {})", whole(*value)),
                None => String::new(),
            };
            let name = match ceiling.name.as_str() {
                "" => String::new(),
                name => format!("{}: ", text(name)),
            };
            let doubt = match ceiling.probes > 0 && !ceiling.is_confirmed {
                true => ", not yet confirmed by a whole step",
                false => "",
            };
            format!("{name}**{largest}**{above}{doubt}")
        });
        let found = found.collect::<Vec<_>>().join("; ");
        return match found.as_str() {
            "" => "no run yet".to_string(),
            found => format!("largest {} that finished: {found}", in_code(parameter)),
        };
    }
    let first = answer(summary).into_iter().next().unwrap_or_default();
    match first.split_once(". ") {
        Some((sentence, _)) => format!("{sentence}."),
        None => first,
    }
}

/// What the measure is called in a sentence: `perplexity at 1K tokens (last stride)`.
pub fn measure_name(measure: &Measure) -> String {
    match measure {
        Measure::Perplexity { method, context_length } => format!(
            "perplexity at {} tokens ({})",
            length_label(*context_length as f64),
            method_name(method)
        ),
        Measure::Loss { key } => name_of_loss(key),
        Measure::PeakMemory => "peak memory".to_string(),
        Measure::Ceiling { parameter } => format!("largest {parameter}"),
    }
}

fn best_label(summary: &Summary, measure: &Measure) -> String {
    let Some(best) = summary.best(measure) else {
        return "**There is no answer yet:** no run has finished with a number to compare.".into();
    };
    let estimate = summary.estimate(best, measure).expect("the best has an estimate");
    let is_perplexity = matches!(measure, Measure::Perplexity { .. });
    let (value, interval) = match is_perplexity {
        true => (estimate.mean.exp(), estimate.interval.map(|i| i.exp())),
        false => (estimate.mean, estimate.interval),
    };
    let seeds = estimate.by_seed.len();
    let half = interval.map_or(0.0, |i| i.half_width());
    let sure = match interval {
        Some(i) => format!(
            "95 % interval {} to {}, {}",
            as_sure_as(i.low, half),
            as_sure_as(i.high, half),
            count(seeds, "seed")
        ),
        None => "one seed, so there is no interval over seeds".to_string(),
    };
    let name = |label: usize| bold(&summary.labels[label].name);
    let mut sentence = format!(
        "{} has the lowest {}: **{}** ({sure})",
        name(best),
        measure_name(measure),
        as_sure_as(value, half)
    );
    let compared: Vec<usize> = (0..summary.labels.len())
        .filter(|&label| label != best && summary.can_be_compared(label, best, measure))
        .collect();
    if best == summary.baseline {
        let next = compared.iter().copied().min_by(|&a, &b| {
            let mean = |label| summary.estimate(label, measure).map_or(f64::NAN, |e| e.mean);
            mean(a).total_cmp(&mean(b))
        });
        match next.and_then(|next| Some((next, summary.difference(best, next, measure)?))) {
            Some((next, difference)) => sentence.push_str(&format!(
                ", the baseline itself, {} than {}",
                lower(&difference, is_perplexity),
                name(next)
            )),
            None => {
                sentence.push_str(", the baseline itself; nothing else can be compared with it")
            }
        }
    } else {
        match summary.difference(best, summary.baseline, measure) {
            Some(difference) if difference.is_distinguishable() => sentence.push_str(&format!(
                ", {} than the baseline {}",
                lower(&difference, is_perplexity),
                name(summary.baseline)
            )),
            Some(difference) if difference.interval.is_none() => sentence.push_str(&format!(
                ", {} than the baseline {}",
                lower(&difference, is_perplexity),
                name(summary.baseline)
            )),
            Some(difference) => sentence.push_str(&format!(
                ", but it can't be told from the baseline {}: {}",
                name(summary.baseline),
                lower(&difference, is_perplexity)
            )),
            None => sentence.push_str(&format!(
                "; the baseline {} has no run to compare it with",
                name(summary.baseline)
            )),
        }
    }
    sentence.push('.');

    let alike = summary.alike(best, measure);
    let names: Vec<String> = alike.iter().map(|&label| name(label)).collect();
    let unsure = summary.without_interval(best, measure);
    match (names.len(), compared.len() - unsure.len()) {
        (_, 0) => {}
        (0, _) if unsure.is_empty() => {
            sentence.push_str(" All others that can be compared are distinguishable from it.")
        }
        (0, _) => sentence
            .push_str(" All others whose difference has an interval are distinguishable from it."),
        (n, all) if n > NAMED => sentence.push_str(&format!(
            " Not distinguishable from it: {n} of the {all} others, in bold below."
        )),
        (n, all) if n == all => sentence.push_str(&format!(
            " None can be told from it: the differences of {} include zero or are next to nothing.",
            list(&names)
        )),
        _ => sentence.push_str(&format!(" Not distinguishable from it: {}.", list(&names))),
    }
    if !unsure.is_empty() {
        let all: Vec<String> = unsure.iter().map(|&label| name(label)).collect();
        sentence.push_str(&match unsure.len() {
            n if n == compared.len() => format!(" {}", capital(UNSURE)),
            n if n > NAMED => format!(" Of {n} of the {} others: {UNSURE}", compared.len()),
            _ => format!(" Of {}: {UNSURE}", list(&all)),
        });
    }
    let lost: Vec<String> = (0..summary.labels.len())
        .filter(|&label| summary.estimate(label, measure).is_some_and(|e| !e.mean.is_finite()))
        .map(name)
        .collect();
    if !lost.is_empty() {
        sentence.push_str(&format!(" Not a number, and left out: {}.", list(&lost)));
    }
    sentence
}

/// Which label takes least memory, and what each adds to the baseline's.
fn least_memory(summary: &Summary) -> String {
    let Some(best) = summary.best(&Measure::PeakMemory) else {
        return "**There is no answer yet:** no run has finished with a number to compare.".into();
    };
    let name = |label: usize| bold(&summary.labels[label].name);
    let peak =
        |label| Costs::of(summary, label).peak.map_or("–".into(), |peak| bytes(peak as i64));
    let mut sentence = format!("{} has the lowest peak memory: **{}**", name(best), peak(best));
    sentence.push_str(&match best == summary.baseline {
        true => ", the baseline itself.".to_string(),
        false => {
            format!(
                ", against {} of the baseline {}.",
                peak(summary.baseline),
                name(summary.baseline)
            )
        }
    });
    let changes: Vec<String> = (0..summary.labels.len())
        .filter_map(|label| {
            let Costs { peak_change, step_change, .. } = Costs::of(summary, label);
            let step = step_change.map_or(String::new(), |x| format!(", the step {}", percent(x)));
            Some(format!("{} {}{step}", name(label), percent(peak_change?)))
        })
        .collect();
    if !changes.is_empty() {
        sentence.push_str(&format!(" Against the baseline's peak: {}.", changes.join("; ")));
    }
    sentence
}

/// How much lower the first of a difference is: `3.1 % lower (95 % interval …)`, `lower by a factor of 6.3 (…)`.
fn lower(difference: &Difference, is_perplexity: bool) -> String {
    let over = match difference.over_windows {
        true => "over the windows of one seed, by bootstrap".to_string(),
        false => format!("paired over {}", count(difference.seeds, "seed")),
    };
    let within = |interval: Option<Interval>, shown: &dyn Fn(f64) -> String| match interval {
        Some(i) => format!("95 % interval {} to {}, {over}", shown(i.low), shown(i.high)),
        None => "one seed: no interval".to_string(),
    };
    // The other way round: how far the second lies above the first.
    let above = difference.interval.map(|i| Interval { mean: -i.mean, low: -i.high, high: -i.low });
    if !is_perplexity {
        let half = above.map_or(0.0, |i| i.half_width());
        let shown = |x: f64| as_sure_as(x, half);
        return format!("{} lower ({})", shown(-difference.mean), within(above, &shown));
    }
    let widest = above.map_or(difference.mean.abs(), |i| i.low.abs().max(i.high.abs()));
    if widest < 0.7 {
        let percent = |x: f64| format!("{} %", rounded((1.0 - (-x).exp()) * 100.0));
        return format!("{} lower ({})", percent(-difference.mean), within(above, &percent));
    }
    let factor = |x: f64| rounded(x.exp());
    format!("lower by a factor of {} ({})", factor(-difference.mean), within(above, &factor))
}

/// Two significant digits are enough for a ratio; whole numbers from 100 on.
fn rounded(x: f64) -> String {
    match x.abs() {
        1e6.. => format_number(x),
        10.0.. => format!("{x:.0}"),
        1.0.. => format!("{x:.1}"),
        size if size < 0.005 => "0".into(),
        _ => format!("{x:.2}"),
    }
}

/// A perplexity that grows by more than this much past the training window breaks.
const BREAKS: f64 = 1.5;

/// Whether perplexity holds past the training window, where the sweep is one over RoPE.
fn rope_phenomenon(summary: &Summary) -> Option<String> {
    let swept =
        summary.differing_params().iter().any(|(key, _)| key.starts_with("model.rope_parameters"));
    let method = summary.methods.first().filter(|_| swept)?;
    let trained = summary.training_length()?;
    let lengths = summary.context_lengths(method);
    let longest = *lengths.last()?;
    let window = lengths.iter().copied().rfind(|&length| length as f64 <= trained);
    let (from, to) = (window.unwrap_or(longest), longest);
    if from == to {
        return Some(format!(
            "The evaluation does not reach past the training length ({} tokens), so it can't show which variant holds there.",
            length_label(trained)
        ));
    }
    let perplexity = |label: usize, context_length: i64| {
        let measure = Measure::Perplexity { method: method.clone(), context_length };
        summary.estimate(label, &measure).map(|e| e.mean.exp())
    };
    let growth = |label: usize| Some((perplexity(label, from)?, perplexity(label, to)?));
    let shown = |label: usize, (short, long): (f64, f64)| {
        let name = bold(&summary.labels[label].name);
        let ratio = long / short;
        (format!("{name} ({}×)", rounded(ratio)), ratio)
    };
    let (short, long) = growth(summary.baseline)?;
    let plain_name = bold(&summary.labels[summary.baseline].name);
    let ratio = long / short;
    let from_to =
        format!("{} → {}, {}×", format_number(short), format_number(long), rounded(ratio));
    let (mut broken, mut held) = (Vec::new(), Vec::new());
    for label in (0..summary.labels.len()).filter(|&label| label != summary.baseline) {
        let Some(pair) = growth(label) else { continue };
        let (text, ratio) = shown(label, pair);
        // A NaN holds nothing.
        if ratio <= BREAKS { held.push(text) } else { broken.push(text) }
    }
    let span = format!(
        "from {} tokens, {}, to {}",
        length_label(from as f64),
        if from as f64 == trained { "the training length" } else { "within the training length" },
        length_label(to as f64)
    );
    let mut sentence = if ratio > BREAKS {
        format!("Past its window the baseline {plain_name} breaks: {from_to} ({span}).")
    } else {
        format!(
            "The baseline {plain_name} does not break past its window here: {from_to} ({span}); the phenomenon does not show."
        )
    };
    if !held.is_empty() {
        sentence.push_str(&format!(" It holds with {}.", list(&held)));
    }
    if !broken.is_empty() {
        let too = if ratio > BREAKS { "too " } else { "" };
        sentence.push_str(&format!(" It breaks {too}with {}.", list(&broken)));
    }
    Some(sentence)
}

fn ceilings(summary: &Summary, parameter: &str) -> Vec<String> {
    let (_, ceilings) = summary.ceilings(parameter);
    if ceilings.is_empty() {
        return vec!["**There is no answer yet:** the search has made no run.".into()];
    }
    let mut paragraphs: Vec<String> =
        ceilings.iter().map(|ceiling| ceiling_sentence(ceiling, parameter)).collect();
    let bisect = &summary.comparison.spec["search"]["bisect"];
    let open: Vec<String> = ceilings
        .iter()
        .filter(|ceiling| !is_found(ceiling, bisect))
        .map(|ceiling| text(&ceiling.name))
        .collect();
    if !open.is_empty() {
        let of = if ceilings.len() > 1 { format!(" of {}", list(&open)) } else { String::new() };
        paragraphs.push(format!(
            "**The search{of} is not finished:** its bracket is still wider than its resolution, or what probes found is not \
             confirmed. The same command goes on."
        ));
    }
    let resolution = &bisect["resolution"];
    if open.len() < ceilings.len() && !resolution.is_null() {
        paragraphs.push(format!(
            "The uncertainty is the search's bracket (its resolution is {}), not an interval over seeds: each value was tried with {}.",
            text(&plain(resolution)),
            count(summary.labels.iter().map(|label| label.points.len()).max().unwrap_or(0), "seed")
        ));
    }
    paragraphs
}

/// Whether a search has come to its end: the bracket as narrow as was asked for, and confirmed where probes found it.
fn is_found(ceiling: &Ceiling, bisect: &serde_json::Value) -> bool {
    let of = |key: &str| tokens(&bisect[key]);
    let (Some(low), Some(high)) = (of("low"), of("high")) else { return true };
    let resolution = of("resolution").unwrap_or((low / 8.0).floor());
    let resolution = resolution.max(of("multiple_of").unwrap_or(1.0));
    let refused = ceiling.smallest_not.as_ref().map(|(value, _)| *value);
    match (ceiling.largest, refused) {
        (None, refused) => refused.is_some_and(|refused| refused <= low),
        (Some(largest), refused) => {
            let ends = refused.map_or(largest >= high, |refused| refused - largest <= resolution);
            ends && (ceiling.probes == 0 || ceiling.is_confirmed)
        }
    }
}

/// A number of the sweep file, which may be written with a suffix: `8192`, `8K`.
fn tokens(value: &serde_json::Value) -> Option<f64> {
    let text = || value.as_str()?.parse::<fathom_spec::units::Tokens>().ok();
    value.as_f64().or_else(|| text().map(|tokens| tokens.0 as f64))
}

fn ceiling_sentence(ceiling: &Ceiling, parameter: &str) -> String {
    let named = |sentence: String| match ceiling.name.as_str() {
        "" => capital(&sentence),
        name => format!("{}: {sentence}", bold(name)),
    };
    let key = in_code(parameter);
    let above = match &ceiling.smallest_not {
        Some((value, point)) => {
            format!("at {} it did not ({})", whole(*value), reason(point))
        }
        None => "no larger value failed".to_string(),
    };
    let mut sentence = named(match ceiling.largest {
        Some(largest) => format!(
            "the largest {key} at which the run still finished is **{}**; {above}.",
            whole(largest)
        ),
        None => format!("no value of {key} finished; {above}."),
    });
    if let (Some(low), Some((high, _))) = (ceiling.largest, &ceiling.smallest_not) {
        sentence.push_str(&format!(
            " The ceiling lies in [{}, {}), found with {}.",
            whole(low),
            whole(*high),
            count(ceiling.points.len(), "run")
        ));
    }
    if ceiling.probes > 0 {
        let probes = format!("{} of the runs worked only some layers of the model", ceiling.probes);
        sentence.push_str(&match (ceiling.largest, ceiling.is_confirmed) {
            (Some(_), true) => format!(" It is confirmed by a whole step; {probes}."),
            (Some(_), false) => format!(" **No whole step has confirmed it yet**: {probes}."),
            (None, _) => format!(" {}.", probes),
        });
    }
    if !ceiling.exceptions.is_empty() {
        let values: Vec<String> = ceiling.exceptions.iter().map(|&value| whole(value)).collect();
        sentence.push_str(&format!(
            " The outcome is not monotone: smaller values failed as well ({}).",
            values.join(", ")
        ));
    }
    sentence
}

/// What is said where no difference has an interval.
pub const UNSURE: &str =
    "one seed and one window: nothing can be said of how sure the differences are.";

/// Labels or failures that an answer names one by one.
const NAMED: usize = 6;

fn failures(summary: &Summary) -> Option<String> {
    let points = summary.comparison.points.len();
    let (mut failed, mut halved) = (Vec::new(), 0);
    for label in &summary.labels {
        for point in label.points.iter().filter(|p| !p.is_open() && p.finished().is_none()) {
            if is_stopped_at_rung(summary, point) {
                halved += 1;
                continue;
            }
            failed.push(format!("{} seed {} ({})", bold(&label.name), point.seed, reason(point)));
        }
    }
    let searching = matches!(summary.measure, Measure::Ceiling { .. });
    if searching {
        return None;
    }
    let halved = (halved > 0).then(|| {
        let were = if halved == 1 { "was" } else { "were" };
        format!("Of {}, {halved} {were} stopped at a rung (see *Rungs*).", count(points, "run"))
    });
    if failed.is_empty() {
        return halved;
    }
    let all = failed.len();
    let more = match all.saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and {more} more, under *Points*"),
    };
    failed.truncate(NAMED);
    let of = if points == 1 { "the only run".into() } else { format!("{points} runs") };
    let does = if all == 1 { "does" } else { "do" };
    let halved = halved.map(|sentence| format!(" {sentence}")).unwrap_or_default();
    Some(format!(
        "Of {of}, {all} did not finish and {does} not count: {}{more}.{halved}",
        failed.join("; ")
    ))
}

/// Why a run is not finished, in a few words: `out of memory: asked for 2.1 GiB, 0.6 GiB free`.
pub fn reason(point: &Point) -> String {
    let Some(run) = &point.run else { return "not run yet".into() };
    let detail = run.status_detail.as_deref().map(|d| text(&without_paths(d))).unwrap_or_default();
    let detail = match (run.status.as_str(), run.asked_bytes, run.free_bytes) {
        ("out_of_memory", Some(needed), Some(there)) if point.is_refused_by_prediction() => {
            let (needed, there) = told_apart(needed, there);
            format!("predicted before the start, {needed} needed, {there} there")
        }
        ("out_of_memory", Some(asked), Some(free)) => {
            let (asked, free) = told_apart(asked, free);
            format!("asked for {asked}, {free} free")
        }
        ("out_of_memory", Some(asked), None) => format!("asked for {}", bytes(asked)),
        _ => detail,
    };
    // The store's detail begins with the step.
    let at_step = detail.strip_prefix("step ").and_then(|rest| rest.split_once(": "));
    let at_step =
        at_step.filter(|(step, _)| run.status == "diverged" && step.parse::<u64>().is_ok());
    let (step, detail) = match at_step {
        Some((step, rest)) => (step.to_string(), rest.to_string()),
        None => (run.step.to_string(), detail),
    };
    let status = match run.status.as_str() {
        "planned" => "not run yet".to_string(),
        "diverged" => format!("diverged at step {step}"),
        status => status.replace('_', " "),
    };
    let status = match point.probe_layers() {
        Some(layers) => format!("{status} (a probe of {layers} layers)"),
        None => status,
    };
    if detail.is_empty() { status } else { format!("{status}: {detail}") }
}

/// Two amounts of memory, with the digits that it takes to tell them apart: `1.23 GiB` and `1.19 GiB`.
fn told_apart(a: i64, b: i64) -> (String, String) {
    let (a, b) = (a.max(0) as u64, b.max(0) as u64);
    (1..=9)
        .map(|digits| (Bytes(a).with_digits(digits), Bytes(b).with_digits(digits)))
        .find(|(shown, other)| shown != other || a == b)
        .unwrap_or_else(|| (format!("{a} B"), format!("{b} B")))
}

/// `1 seed`, `3 seeds`.
pub fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// `a`, `a and b`, `a, b and c`.
fn list(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// A value of a searched parameter: with thousands apart where it is a whole number.
pub fn whole(value: f64) -> String {
    if value.fract() != 0.0 || value.abs() >= 1e15 {
        return format_number(value);
    }
    let digits = format!("{}", value.abs() as i64);
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    if value < 0.0 { format!("-{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        assert_eq!(whole(11_776.0), "11,776");
        assert_eq!(whole(512.0), "512");
        assert_eq!(whole(1_048_576.0), "1,048,576");
        assert_eq!(whole(0.5), "0.5");
        assert_eq!(count(1, "seed"), "1 seed");
        assert_eq!(list(&["a".into(), "b".into(), "c".into()]), "a, b and c");
        assert_eq!(rounded(6.34), "6.3");
        assert_eq!(rounded(170.2), "170");
        assert_eq!(rounded(-0.42), "-0.42");
    }

    #[test]
    fn amounts_of_memory_have_the_digits_that_tell_them_apart() {
        let shown = |a, b| {
            let (a, b) = told_apart(a, b);
            format!("{a}, {b}")
        };
        assert_eq!(shown(3 << 30, 1 << 29), "3.0 GiB, 512.0 MiB");
        assert_eq!(shown(1_320_000_000, 1_280_000_000), "1.23 GiB, 1.19 GiB");
        assert_eq!(shown(1 << 30, 1 << 30), "1.0 GiB, 1.0 GiB");
        assert_eq!(shown((1 << 40) + 1, 1 << 40), "1099511627777 B, 1099511627776 B");
    }

    #[test]
    fn differences_are_percents_when_small_and_factors_when_large() {
        let about = |mean: f64, half: f64| Difference {
            mean,
            interval: Some(Interval { mean, low: mean - half, high: mean + half }),
            seeds: 3,
            over_windows: false,
        };
        assert_eq!(
            lower(&about(-0.05, 0.01), true),
            "4.9 % lower (95 % interval 3.9 % to 5.8 %, paired over 3 seeds)"
        );
        assert_eq!(
            lower(&about(-2.0, 0.1), true),
            "lower by a factor of 7.4 (95 % interval 6.7 to 8.2, paired over 3 seeds)"
        );
        assert_eq!(
            lower(&about(-0.05, 0.01), false),
            "0.050 lower (95 % interval 0.040 to 0.060, paired over 3 seeds)"
        );
        let single = Difference { interval: None, seeds: 1, ..about(-0.05, 0.0) };
        assert_eq!(lower(&single, true), "4.9 % lower (one seed: no interval)");
    }
}
