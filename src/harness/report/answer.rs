//! The answer of a report: which label is best, by how much, how sure that is, and what is missing.

use super::difference::Difference;
use super::input::Point;
use super::markdown::{
    as_sure_as, bold, bytes, capital, method_name, name_of_loss, text, without_paths,
};
use super::memory::{Costs, percent};
use super::plot::axis::length_label;
use super::rungs::is_stopped_at_rung;
use super::searched;
use super::sensitivity;
use super::statistics::Interval;
use super::summary::{Measure, Summary};
use fathom_spec::units::{Bytes, format_number};

/// The paragraphs of the answer, the first sentence first.
pub fn answer(summary: &Summary) -> Vec<String> {
    let mut paragraphs = match &summary.measure {
        Measure::Ceiling { parameter } => searched::answer(summary, parameter),
        Measure::PeakMemory => vec![least_memory(summary).join(" ")],
        measure => vec![best_label(summary, measure).join(" ")],
    };
    paragraphs.extend(rope_phenomenon(summary));
    paragraphs.extend(sensitivity::headline(summary));
    paragraphs.extend(failures(summary));
    paragraphs
}

/// The answer in one line: its first sentence, or what each search found.
pub fn headline(summary: &Summary) -> String {
    if let Measure::Ceiling { parameter } = &summary.measure {
        return searched::headline(summary, parameter);
    }
    let sentences = match &summary.measure {
        Measure::PeakMemory => least_memory(summary),
        measure => best_label(summary, measure),
    };
    sentences.into_iter().next().unwrap_or_default()
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

/// The sentences of the answer of a sweep that is judged by a loss or a perplexity.
fn best_label(summary: &Summary, measure: &Measure) -> Vec<String> {
    let Some(best) = summary.best(measure) else {
        return vec![NO_ANSWER.into()];
    };
    let name = |label: usize| bold(&summary.labels[label].name);
    let compared: Vec<usize> = (0..summary.labels.len())
        .filter(|&label| label != best && summary.can_be_compared(label, best, measure))
        .collect();
    let mut sentences = vec![format!(
        "{}{}.",
        lowest(summary, best, measure),
        against_the_baseline(summary, best, &compared, measure)
    )];

    let alike = summary.alike(best, measure);
    let names: Vec<String> = alike.iter().map(|&label| name(label)).collect();
    let unsure = summary.without_interval(best, measure);
    match (names.len(), compared.len() - unsure.len()) {
        (_, 0) => {}
        (0, _) if unsure.is_empty() => {
            sentences.push("All others that can be compared are distinguishable from it.".into())
        }
        (0, _) => sentences.push(
            "All others whose difference has an interval are distinguishable from it.".into(),
        ),
        (n, all) if n > NAMED => sentences
            .push(format!("Not distinguishable from it: {n} of the {all} others, in bold below.")),
        (n, all) if n == all => sentences.push(format!(
            "None can be told from it: the differences of {} include zero or are next to nothing.",
            list(&names)
        )),
        _ => sentences.push(format!("Not distinguishable from it: {}.", list(&names))),
    }
    let lower: Vec<String> = compared
        .iter()
        .filter(|&&label| label != summary.baseline && !alike.contains(&label))
        .filter(|&&label| {
            let difference = summary.difference(label, best, measure);
            difference.is_some_and(|difference| difference.mean < -SAME)
        })
        .map(|&label| name(label))
        .collect();
    if !lower.is_empty() {
        sentences.push(format!("Lower than it where both have a number: {}.", list(&lower)));
    }
    if !unsure.is_empty() {
        let all: Vec<String> = unsure.iter().map(|&label| name(label)).collect();
        sentences.push(match unsure.len() {
            n if n == compared.len() => capital(UNSURE),
            n if n > NAMED => format!("Of {n} of the {} others: {UNSURE}", compared.len()),
            _ => format!("Of {}: {UNSURE}", list(&all)),
        });
    }
    let lost: Vec<String> = (0..summary.labels.len())
        .filter(|&label| summary.estimate(label, measure).is_some_and(|e| !e.mean.is_finite()))
        .map(name)
        .collect();
    if !lost.is_empty() {
        sentences.push(format!("Not a number, and left out: {}.", list(&lost)));
    }
    sentences
}

/// Which label has the lowest mean, or which have it together, and what it is.
fn lowest(summary: &Summary, best: usize, measure: &Measure) -> String {
    let estimate = summary.estimate(best, measure).expect("the best has an estimate");
    let (value, interval) = match measure {
        Measure::Perplexity { .. } => (estimate.mean.exp(), estimate.interval.map(|i| i.exp())),
        _ => (estimate.mean, estimate.interval),
    };
    let half = interval.map_or(0.0, |i| i.half_width());
    let sure = match interval {
        Some(i) => format!(
            "95 % interval {} to {}, {}",
            as_sure_as(i.low, half),
            as_sure_as(i.high, half),
            count(estimate.by_seed.len(), "seed")
        ),
        None => "one seed, so there is no interval over seeds".to_string(),
    };
    let is_same = |label: &usize| {
        summary.estimate(*label, measure).is_some_and(|other| other.by_seed == estimate.by_seed)
    };
    let all: Vec<usize> = (0..summary.labels.len()).filter(is_same).collect();
    let who = match all.as_slice() {
        [_] => format!("{} has the lowest", bold(&summary.labels[best].name)),
        all if all.len() > NAMED => {
            format!("{} labels have the same numbers, and the lowest", all.len())
        }
        all => {
            let names: Vec<String> =
                all.iter().map(|&label| bold(&summary.labels[label].name)).collect();
            format!("{} have the same numbers, and the lowest", list(&names))
        }
    };
    format!("{who} {}: **{}** ({sure})", measure_name(measure), as_sure_as(value, half))
}

/// How far the best label is from the baseline, or, where it is the baseline itself, from the next of those that can be
/// `compared` with it: what goes on after its number.
fn against_the_baseline(
    summary: &Summary,
    best: usize,
    compared: &[usize],
    measure: &Measure,
) -> String {
    let is_perplexity = matches!(measure, Measure::Perplexity { .. });
    let name = |label: usize| bold(&summary.labels[label].name);
    let is_baseline = best == summary.baseline;
    let mean = |label: usize| summary.estimate(label, measure).map_or(f64::NAN, |e| e.mean);
    let other = match is_baseline {
        true => compared.iter().copied().min_by(|&a, &b| mean(a).total_cmp(&mean(b))),
        false => Some(summary.baseline),
    };
    let itself = if is_baseline { ", the baseline itself" } else { "" };
    let Some(other) = other else {
        return format!("{itself}; nothing else can be compared with it");
    };
    let whom = match is_baseline {
        true => name(other),
        false => format!("the baseline {}", name(other)),
    };
    let Some(difference) = summary.difference(best, other, measure) else {
        return format!("; {whom} {}", why_not_compared(summary, best, other, measure));
    };
    let how_far = apart(&difference, is_perplexity);
    if difference.mean > SAME {
        let all = [best, other].map(|label| summary.estimate(label, measure));
        let [of_best, of_other] = all.map(|e| e.map(|e| e.by_seed.into_keys().collect::<Vec<_>>()));
        let seeds = match of_best == of_other {
            true => "",
            false => "; the means are not over the same seeds",
        };
        return format!(
            "{itself}, but where both have a number it is {how_far} than {whom}{seeds}"
        );
    }
    if difference.mean >= -SAME {
        return format!("{itself}, {how_far} than {whom}");
    }
    match difference.is_distinguishable() || difference.interval.is_none() || is_baseline {
        true => format!("{itself}, {how_far} than {whom}"),
        false => format!(", but it can't be told from {whom}: {how_far}"),
    }
}

/// Why there is no difference of two labels, as what is said of the second.
fn why_not_compared(summary: &Summary, best: usize, other: usize, measure: &Measure) -> String {
    let finished = summary.labels[other].finished().count();
    match summary.estimate(other, measure) {
        _ if finished == 0 => "has no finished run to compare it with".into(),
        None => format!(
            "has {}, but none with its {}",
            count(finished, "finished run"),
            measure_name(measure)
        ),
        Some(estimate) if !estimate.mean.is_finite() => {
            "is not a number there, and can't be compared with it".into()
        }
        Some(estimate) => {
            let shared = summary.labels[best]
                .finished()
                .any(|(seed, _)| estimate.by_seed.contains_key(&seed));
            match shared {
                true => "has no number on the same windows to compare it with".into(),
                false => {
                    "has finished with no seed that it has too, so the two can't be compared".into()
                }
            }
        }
    }
}

/// What stands where nothing can be said.
const NO_ANSWER: &str = "**There is no answer yet:** no run has finished with a number to compare.";

/// Nats within which two means differ by rounding alone.
const SAME: f64 = 1e-12;

/// The sentences on which label takes least memory, and what each adds to the baseline's.
fn least_memory(summary: &Summary) -> Vec<String> {
    let Some(best) = summary.best(&Measure::PeakMemory) else {
        return vec![NO_ANSWER.into()];
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
    let mut sentences = vec![sentence];
    if !changes.is_empty() {
        sentences.push(format!("Against the baseline's peak: {}.", changes.join("; ")));
    }
    sentences
}

/// How far the first of a difference is from the second: `3.1 % lower (95 % interval …)`, `lower by a factor of 6.3 (…)`,
/// `1.2 % higher (…)`.
fn apart(difference: &Difference, is_perplexity: bool) -> String {
    let over = match difference.over_windows {
        true => "over the windows of one seed, by bootstrap".to_string(),
        false => format!("paired over {}", count(difference.seeds, "seed")),
    };
    let within = |interval: Option<Interval>, shown: &dyn Fn(f64) -> String| match interval {
        Some(i) => format!("95 % interval {} to {}, {over}", shown(i.low), shown(i.high)),
        None => "one seed: no interval".to_string(),
    };
    let is_lower = difference.mean < 0.0;
    let way = if is_lower { "lower" } else { "higher" };
    // The lower one is told by how far the other lies above it.
    let interval = difference.interval.map(|i| match is_lower {
        true => Interval { mean: -i.mean, low: -i.high, high: -i.low },
        false => i,
    });
    let mean = difference.mean.abs();
    if mean <= SAME {
        let interval = difference.interval.filter(|i| i.half_width() > SAME);
        let half = interval.map_or(0.0, |i| i.half_width());
        let nats = |x: f64| format!("{} nats", as_sure_as(x, half));
        return match interval {
            Some(_) => format!("neither lower nor higher ({})", within(interval, &nats)),
            None => "neither lower nor higher".to_string(),
        };
    }
    if !is_perplexity {
        let half = interval.map_or(0.0, |i| i.half_width());
        let shown = |x: f64| as_sure_as(x, half);
        return format!("{} {way} ({})", shown(mean), within(interval, &shown));
    }
    let widest = interval.map_or(mean, |i| i.low.abs().max(i.high.abs()));
    if widest < 0.7 {
        let percent = |x: f64| {
            let ratio = if is_lower { 1.0 - (-x).exp() } else { x.exp_m1() };
            format!("{} %", rounded(ratio * 100.0))
        };
        let size = match percent(mean).as_str() {
            "0 %" => "less than 0.005 %".to_string(),
            size => size.to_string(),
        };
        return format!("{size} {way} ({})", within(interval, &percent));
    }
    let factor = |x: f64| rounded(x.exp());
    format!("{way} by a factor of {} ({})", factor(mean), within(interval, &factor))
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
    let perplexity = |label: usize, context_length: i64| {
        let measure = Measure::Perplexity { method: method.clone(), context_length };
        summary.estimate(label, &measure).map(|e| e.mean.exp())
    };
    // What the baseline was not evaluated at can't show what becomes of it.
    let mut lengths = summary.context_lengths(method);
    lengths.retain(|&length| perplexity(summary.baseline, length).is_some());
    let longest = *lengths.last()?;
    let window = lengths.iter().copied().rfind(|&length| length as f64 <= trained);
    let (from, to) = (window.unwrap_or(longest), longest);
    if from == to {
        return Some(format!(
            "The evaluation does not reach past the training length ({} tokens), so it can't show which variant holds there.",
            length_label(trained)
        ));
    }
    let growth = |label: usize| Some((perplexity(label, from)?, perplexity(label, to)?));
    // A NaN holds nothing.
    let breaks = |(short, long): (f64, f64)| long.is_nan() || long / short > BREAKS;
    let times = |(short, long): (f64, f64)| match long.is_nan() {
        true => "not a number".to_string(),
        false => format!("{}×", rounded(long / short)),
    };
    let baseline = growth(summary.baseline)?;
    let plain_name = bold(&summary.labels[summary.baseline].name);
    let (short, long) = baseline;
    let from_to = format!("{} → {}", format_number(short), format_number(long));
    let from_to = match long.is_nan() {
        true => from_to,
        false => format!("{from_to}, {}", times(baseline)),
    };
    let (mut broken, mut held, mut none) = (Vec::new(), Vec::new(), Vec::new());
    for label in (0..summary.labels.len()).filter(|&label| label != summary.baseline) {
        let Some(pair) = growth(label) else { continue };
        let name = bold(&summary.labels[label].name);
        match pair.0.is_nan() {
            true => none.push(name),
            false if breaks(pair) => broken.push(format!("{name} ({})", times(pair))),
            false => held.push(format!("{name} ({})", times(pair))),
        }
    }
    let span = format!(
        "from {} tokens, {}, to {}",
        length_label(from as f64),
        if from as f64 == trained { "the training length" } else { "within the training length" },
        length_label(to as f64)
    );
    let mut sentence = if short.is_nan() {
        format!(
            "The baseline {plain_name} is not a number within its window already, so it can't show whether it breaks past it ({span})."
        )
    } else if breaks(baseline) {
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
        let too = if !short.is_nan() && breaks(baseline) { "too " } else { "" };
        sentence.push_str(&format!(" It breaks {too}with {}.", list(&broken)));
    }
    if !none.is_empty() {
        sentence.push_str(&format!(" Not a number within the window: {}.", list(&none)));
    }
    Some(sentence)
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
pub fn list(names: &[String]) -> String {
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
            apart(&about(-0.05, 0.01), true),
            "4.9 % lower (95 % interval 3.9 % to 5.8 %, paired over 3 seeds)"
        );
        assert_eq!(
            apart(&about(-2.0, 0.1), true),
            "lower by a factor of 7.4 (95 % interval 6.7 to 8.2, paired over 3 seeds)"
        );
        assert_eq!(
            apart(&about(-0.05, 0.01), false),
            "0.050 lower (95 % interval 0.040 to 0.060, paired over 3 seeds)"
        );
        assert_eq!(
            apart(&about(0.05, 0.01), true),
            "5.1 % higher (95 % interval 4.1 % to 6.2 %, paired over 3 seeds)"
        );
        assert_eq!(
            apart(&about(2.0, 0.1), true),
            "higher by a factor of 7.4 (95 % interval 6.7 to 8.2, paired over 3 seeds)"
        );
        assert_eq!(apart(&about(0.0, 0.0), true), "neither lower nor higher");
        assert_eq!(
            apart(&about(-0.0, 0.01), true),
            "neither lower nor higher (95 % interval -0.010 nats to 0.010 nats, paired over 3 seeds)"
        );
        let single = Difference { interval: None, seeds: 1, ..about(-0.05, 0.0) };
        assert_eq!(apart(&single, true), "4.9 % lower (one seed: no interval)");
    }
}
