//! The order in which a point's values are derived: each after those that its expression reads, whatever the order of the file.

use super::rules::Expression;
use anyhow::{Result, bail};

/// Keys to derive, with their expressions.
pub(super) type Derive = Vec<(String, Expression)>;

/// Brings values behind those that they are derived from; otherwise the order of the file stays. An option of a project comes
/// before key paths where nothing else is said: it may change any of them.
pub(super) fn in_order(derive: Derive) -> Result<Derive> {
    let names: Vec<Vec<String>> = derive.iter().map(|(_, expression)| expression.names()).collect();
    // A whole section is read for one of its keys, and nobody knows which.
    let of_section = |at: usize, key: &str| names[at].iter().any(|name| is_within(key, name));
    let reads =
        |at: usize, key: &str| names[at].iter().any(|name| name == key || is_within(name, key));
    let mut left: Vec<usize> = (0..derive.len()).collect();
    let mut order = Vec::new();
    while !left.is_empty() {
        let free = |at: usize| !left.iter().any(|&other| reads(at, &derive[other].0));
        let softly =
            |at: usize| !left.iter().any(|&other| other != at && of_section(at, &derive[other].0));
        let is_option = |at: usize| !derive[at].0.contains('.');
        let first = |holds: &dyn Fn(usize) -> bool| left.iter().position(|&at| holds(at));
        let next = first(&|at| is_option(at) && free(at) && softly(at))
            .or_else(|| first(&|at| free(at) && softly(at)))
            .or_else(|| first(&|at| free(at)));
        let Some(next) = next else { return refuse_cycle(&derive, &left, &reads) };
        order.push(left.remove(next));
    }
    let mut derive: Vec<Option<(String, Expression)>> = derive.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|at| derive[at].take()).collect())
}

fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

/// Of keys that all wait for one another, follows what each reads until one comes again.
fn refuse_cycle(
    derive: &Derive,
    left: &[usize],
    reads: &impl Fn(usize, &str) -> bool,
) -> Result<Derive> {
    let mut path: Vec<usize> = vec![left[0]];
    let cycle = loop {
        let last = path[path.len() - 1];
        let next = left.iter().copied().find(|&other| reads(last, &derive[other].0));
        let next = next.expect("each of them reads one that is left");
        if let Some(at) = path.iter().position(|&seen| seen == next) {
            path.push(next);
            break &path[at..];
        }
        path.push(next);
    };
    let keys: Vec<String> = cycle.iter().map(|&at| format!("`{}`", derive[at].0)).collect();
    let first = &derive[cycle[0]].1;
    match &keys[..] {
        [own, _] => bail!(
            "{}: {}: expected a value derived from other keys, found one derived from itself ({own})\n  help: write the number \
             that it starts from into the expression",
            first.origin,
            first.place
        ),
        _ => bail!(
            "{}: {}: expected values that can be derived one after another, found a cycle: {}\n  help: give one of them its value \
             under `set`",
            first.origin,
            first.place,
            keys.join(" reads ")
        ),
    }
}
