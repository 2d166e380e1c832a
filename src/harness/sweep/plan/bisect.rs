//! `search.bisect`: what is searched, between which ends, how finely.

use super::axes::Choice;
use super::{SEED, known};
use anyhow::{Context, Result, bail};
use fathom_spec::config::written::{Node, Origin, Written};

/// A search for the largest value of one parameter with which a run still finishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Bisect {
    pub parameter: String,
    pub low: u64,
    pub high: u64,
    /// The search ends when the bracket is at most this wide.
    pub resolution: u64,
    /// Every probe is a multiple of this.
    pub multiple_of: u64,
    /// Probes work only so many layers of the model, whose memory is that of all of them in a fraction of the time.
    pub probe_layers: Option<u64>,
    /// Values that are tried first, rising, until one does not finish: the table of the report.
    pub also: Vec<u64>,
}

/// The key that a probe sets.
pub const PROBE_LAYERS: &str = "run.probe_layers";

/// Where a value that a search sets stands.
pub(super) fn origin(tree: &Written) -> Origin {
    let written = tree.get("search.bisect.parameter").or_else(|| tree.get("search"));
    written.unwrap_or(tree).origin.clone()
}

pub(super) fn bisect(search: &Written) -> Result<Bisect> {
    const PLACE: &str = "search.bisect";
    for entry in search.entries("search")? {
        known(entry, &["bisect", "halving"], "search")?;
    }
    let Some(written) = search.get("bisect") else {
        bail!("{}: search: expected `bisect` or `halving`, found none", search.origin);
    };
    for entry in written.entries(PLACE)? {
        let keys =
            ["parameter", "low", "high", "resolution", "multiple_of", "probe_layers", "also"];
        known(entry, &keys, PLACE)?;
    }
    let value = |key: &str| {
        let value = written.get(key);
        value.with_context(|| {
            format!("{}: {PLACE}: expected the key `{key}`, found none", written.origin)
        })
    };
    let whole = |key: &str| whole(value(key)?, &format!("{PLACE}.{key}"));
    let optional =
        |key: &str, default: u64| if written.get(key).is_some() { whole(key) } else { Ok(default) };
    let parameter = value("parameter")?.text("search.bisect.parameter")?.to_string();
    let (low, high) = (whole("low")?, whole("high")?);
    if low >= high {
        bail!("{}: {PLACE}: expected low below high, found {low} and {high}", written.origin);
    }
    let multiple_of = optional("multiple_of", 1)?;
    for (key, end) in [("low", low), ("high", high)] {
        if end % multiple_of != 0 {
            bail!(
                "{}: {PLACE}.{key}: expected a multiple of {multiple_of}, found {end}\n  help: the nearest are {} and {}",
                value(key)?.origin,
                end / multiple_of * multiple_of,
                (end / multiple_of + 1) * multiple_of
            );
        }
    }
    let resolution = optional("resolution", (low / 8).max(multiple_of))?;
    let place = written.get("resolution").unwrap_or(written);
    if resolution < multiple_of {
        bail!(
            "{}: {PLACE}.resolution: expected {multiple_of} or more, as every probe is a multiple of that, found {resolution}",
            place.origin
        );
    }
    if resolution >= high - low && high - low > multiple_of {
        let default = if written.get("resolution").is_none() { " (an eighth of low)" } else { "" };
        bail!(
            "{}: {PLACE}.resolution: expected less than lies between low and high ({}), found {resolution}{default}\n  help: \
             nothing between the two would be tried",
            place.origin,
            high - low
        );
    }
    let probe_layers = written.get("probe_layers").map(|_| whole("probe_layers")).transpose()?;
    let also = written.get("also").map_or(Ok(Vec::new()), |list| also(list, multiple_of))?;
    Ok(Bisect { parameter, low, high, resolution, multiple_of, probe_layers, also })
}

/// The values to try first, rising.
fn also(list: &Written, multiple_of: u64) -> Result<Vec<u64>> {
    const PLACE: &str = "search.bisect.also";
    let mut values = Vec::new();
    for item in list.items(PLACE)? {
        let value = whole(item, PLACE)?;
        if value % multiple_of != 0 {
            bail!("{}: {PLACE}: expected multiples of {multiple_of}, found {value}", item.origin);
        }
        if values.contains(&value) {
            bail!("{}: {PLACE}: expected each value once, found {value} again", item.origin);
        }
        values.push(value);
    }
    values.sort_unstable();
    Ok(values)
}

pub(super) fn whole(value: &Written, place: &str) -> Result<u64> {
    let number = match &value.node {
        Node::Int(n) => u64::try_from(*n).ok().filter(|n| *n > 0),
        Node::String(text) => text.parse::<fathom_spec::units::Tokens>().ok().map(|t| t.0),
        _ => None,
    };
    number.with_context(|| {
        format!(
            "{}: {place}: expected a whole number, 1 or more, found {}",
            value.origin,
            value.describe()
        )
    })
}

/// A search tries each value once and sets it itself: what would set it too, or ask for seeds, is refused.
pub(super) fn refuse_beside_search(
    tree: &Written,
    search: Option<&Bisect>,
    choices: &[Vec<Choice>],
) -> Result<()> {
    let (Some(written), Some(search)) = (tree.get("search"), search) else { return Ok(()) };
    let origin = &written.origin;
    let seed = format!("a search tries each value once; set its seed under `set` (`{SEED}`)");
    if let Some(seeds) = tree.get("seeds") {
        let line = seeds.origin.line;
        bail!(
            "{origin}: search: expected a sweep without `seeds`, found one at line {line}\n  help: {seed}"
        );
    }
    for choice in choices.iter().flatten() {
        if choice.axis == SEED {
            bail!(
                "{origin}: search: expected a sweep without the axis `{SEED}`, found one\n  help: {seed}"
            );
        }
        let own = [&search.parameter, PROBE_LAYERS];
        if let Some((key, value)) = choice.settings.iter().find(|(k, _)| own.contains(&k.as_str()))
        {
            bail!(
                "{}: axes.{}: expected keys that the search does not set itself, found `{key}`",
                value.origin,
                choice.axis
            );
        }
    }
    Ok(())
}
