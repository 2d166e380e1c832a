//! Points of axes: their product or random draws of it, with axes that advance together, and what is taken away or added.

use super::axes::{Axis, Choice, Condition, Distribution, Values, conditions, key_choice};
use super::{MOST_POINTS, SEED, known, plain, same};
use anyhow::{Result, anyhow, bail};
use fathom_spec::config::nearest;
use fathom_spec::config::written::{Entry, Node, Origin, Written};

/// The axes, those that are zipped as one, in the order in which they multiply: the seeds last.
pub(super) struct Groups<'a> {
    groups: Vec<Group>,
    /// Of all axes.
    names: Vec<String>,
    listed: Vec<Choice>,
    /// Points of the grid, or draws, to leave out: where all conditions of one of these hold.
    pub exclude: Vec<Vec<Condition>>,
    tree: &'a Written,
}

/// Axes that advance together; most often one.
struct Group {
    /// The names of its axes.
    names: Vec<String>,
    rows: Rows,
    when: Vec<Condition>,
}

enum Rows {
    Listed(Vec<Vec<Choice>>),
    Drawn(Distribution),
}

/// What came of a draw.
pub(super) enum Draw {
    Made(Vec<Choice>),
    Excluded,
}

impl<'a> Groups<'a> {
    pub(super) fn read(tree: &'a Written, axes: Vec<Axis>) -> Result<Groups<'a>> {
        let names = axes.iter().map(|axis| axis.name.clone()).collect();
        let listed = axes
            .iter()
            .flat_map(|axis| match &axis.values {
                Values::Listed(choices) => choices.clone(),
                Values::Drawn(_) => Vec::new(),
            })
            .collect();
        let mut groups = zipped(tree, axes)?;
        // The seed varies fastest.
        if let Some(at) = groups.iter().position(Group::is_seed) {
            let seeds = groups.remove(at);
            groups.push(seeds);
        }
        groups.iter().try_for_each(Group::refuse_same_values)?;
        let mut groups = Groups { groups, names, listed, exclude: Vec::new(), tree };
        groups.check_conditions()?;
        groups.exclude = groups.excluded()?;
        Ok(groups)
    }

    /// An axis depends only on what is chosen before it.
    fn check_conditions(&self) -> Result<()> {
        for (at, group) in self.groups.iter().enumerate() {
            let before = self.groups[..at].iter().flat_map(|group| &group.names);
            let before: Vec<(&str, Vec<&Choice>)> =
                before.map(|name| (name.as_str(), self.choices_of(name))).collect();
            for condition in &group.when {
                condition.check(&before, &format!("axes.{}.when", group.names[0]))?;
            }
        }
        Ok(())
    }

    /// Refuses a condition on what is no axis, or on a value that the axis never has.
    /// `included` are the values of further points.
    pub(super) fn check(
        &self,
        condition: &Condition,
        place: &str,
        included: &[Vec<Choice>],
    ) -> Result<()> {
        let axes = self.names.iter().map(|name| {
            let further = included.iter().flatten().filter(|choice| choice.axis == *name);
            (name.as_str(), self.choices_of(name).into_iter().chain(further).collect::<Vec<_>>())
        });
        condition.check(&axes.collect::<Vec<_>>(), place)
    }

    /// None of a distribution.
    fn choices_of(&self, name: &str) -> Vec<&Choice> {
        self.listed.iter().filter(|choice| choice.axis == name).collect()
    }

    fn excluded(&self) -> Result<Vec<Vec<Condition>>> {
        let mut found = Vec::new();
        for pattern in self.list("exclude")? {
            for entry in pattern.entries("exclude")? {
                known(
                    entry,
                    &self.names.iter().map(String::as_str).collect::<Vec<_>>(),
                    "exclude",
                )?;
            }
            let pattern = conditions(pattern, "exclude")?;
            pattern.iter().try_for_each(|condition| self.check(condition, "exclude", &[]))?;
            found.push(pattern);
        }
        Ok(found)
    }

    /// Whether an axis is there at every point.
    pub(super) fn always(&self, axis: &str) -> bool {
        let of_axis = |group: &&Group| group.names.iter().any(|name| name == axis);
        self.groups.iter().find(of_axis).is_some_and(|group| group.when.is_empty())
    }

    fn list(&self, key: &str) -> Result<&'a [Written]> {
        self.tree.get(key).map_or(Ok(&[]), |list| list.items(key))
    }

    /// All combinations that no pattern excludes.
    pub(super) fn grid(&self) -> Result<Vec<Vec<Choice>>> {
        let mut combinations: Vec<Vec<Choice>> = vec![Vec::new()];
        for group in &self.groups {
            let Rows::Listed(rows) = &group.rows else {
                bail!("axes.{}: expected values, found a distribution", group.names[0])
            };
            if !combinations.iter().any(|before| group.applies(before)) {
                bail!(
                    "{}: axes.{}.when: expected conditions that hold at some point, found some that never do together",
                    group.when[0].origin,
                    group.names[0]
                );
            }
            let mut next = Vec::new();
            for before in combinations {
                if !group.applies(&before) {
                    next.push(before);
                    continue;
                }
                if next.len() + rows.len() > MOST_POINTS {
                    let found: f64 = self.groups.iter().map(Group::len).product();
                    let origin =
                        self.tree.get("axes").map_or(&self.tree.origin, |axes| &axes.origin);
                    bail!(
                        "{origin}: axes: expected at most {MOST_POINTS} points, found {found:.0}\n  help: `random: {{ count: 20 }}` \
                         draws some of them"
                    );
                }
                next.extend(rows.iter().map(|row| [before.clone(), row.clone()].concat()));
            }
            combinations = next;
        }
        for pattern in &self.exclude {
            let before = combinations.len();
            combinations.retain(|choices| !pattern.iter().all(|one| one.holds(choices)));
            if combinations.len() == before {
                bail!(
                    "{}: exclude: expected a pattern that some point matches, found none that does",
                    pattern[0].origin
                );
            }
        }
        Ok(combinations)
    }

    /// Draw `index`, without the seeds that each draw is made with. Each axis is drawn by itself: one that is added or taken
    /// away changes nothing in the others.
    pub(super) fn draw(&self, seed: u64, index: u64) -> Draw {
        let mut choices: Vec<Choice> = Vec::new();
        for group in self.groups.iter().filter(|group| !group.is_crossed()) {
            if !group.applies(&choices) {
                continue;
            }
            let u = uniform(seed, &group.names[0], index);
            match &group.rows {
                Rows::Drawn(distribution) => choices.push(distribution.draw(u)),
                Rows::Listed(rows) => {
                    let at = (u * rows.len() as f64) as usize;
                    choices.extend(rows[at.min(rows.len() - 1)].iter().cloned());
                }
            }
        }
        if self.is_excluded(&choices) { Draw::Excluded } else { Draw::Made(choices) }
    }

    fn is_excluded(&self, choices: &[Choice]) -> bool {
        self.exclude.iter().any(|pattern| pattern.iter().all(|one| one.holds(choices)))
    }

    /// A draw with each seed that it may have.
    pub(super) fn with_seeds(&self, choices: &[Choice]) -> Vec<Vec<Choice>> {
        let seeds = self.groups.iter().find(|group| group.is_crossed()).map(|group| &group.rows);
        let Some(Rows::Listed(rows)) = seeds else { return vec![choices.to_vec()] };
        let made = rows.iter().map(|row| [choices, &row[..]].concat());
        made.filter(|choices| !self.is_excluded(choices)).collect()
    }

    /// The points that `include` adds, each with every seed unless it names its own.
    pub(super) fn included(&self) -> Result<Vec<Vec<Choice>>> {
        let seeds: Vec<&Choice> = self.listed.iter().filter(|c| c.axis == SEED).collect();
        let mut points = Vec::new();
        for extra in self.list("include")? {
            let entries = extra.entries("include")?;
            let choices: Vec<Choice> =
                entries.iter().map(|entry| self.include(entry)).collect::<Result<_>>()?;
            if seeds.is_empty() || choices.iter().any(|c| c.axis == SEED) {
                points.push(choices);
            } else {
                points.extend(
                    seeds.iter().map(|&seed| [choices.clone(), vec![seed.clone()]].concat()),
                );
            }
        }
        Ok(points)
    }

    /// What an entry of `include` chooses: a named variant of an axis by its label, else a value of a key path.
    fn include(&self, entry: &Entry) -> Result<Choice> {
        let shown = entry.value.to_json();
        let axis: Vec<&Choice> = self.listed.iter().filter(|c| c.axis == entry.key).collect();
        if let Some(choice) = axis.iter().find(|c| c.shown == shown) {
            return Ok((*choice).clone());
        }
        // An axis of named variants sets other keys than its own name.
        let named = axis.iter().any(|c| !c.settings.iter().any(|(key, _)| *key == entry.key));
        if !named {
            return Ok(key_choice(&entry.key, entry.value.clone()));
        }
        let labels: Vec<String> = axis.iter().map(|c| plain(&c.shown)).collect();
        let near = nearest(&plain(&shown), labels.iter().map(String::as_str));
        let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
        bail!(
            "{}: include: expected a label of the axis `{}`, found {}\n  help: {near}its labels: {}",
            entry.value.origin,
            entry.key,
            entry.value.describe(),
            labels.join(", ")
        )
    }
}

impl Group {
    fn of(axis: Axis) -> Group {
        let rows = match axis.values {
            Values::Listed(choices) => {
                Rows::Listed(choices.into_iter().map(|choice| vec![choice]).collect())
            }
            Values::Drawn(distribution) => Rows::Drawn(distribution),
        };
        Group { names: vec![axis.name], rows, when: axis.when }
    }

    /// Each value makes a run of its own.
    fn refuse_same_values(&self) -> Result<()> {
        let Rows::Listed(rows) = &self.rows else { return Ok(()) };
        let is = |a: &Vec<Choice>, b: &Vec<Choice>| {
            a.iter().zip(b).all(|(a, b)| same(&a.shown, &b.shown))
        };
        for (at, row) in rows.iter().enumerate() {
            let Some(twin) = rows[..at].iter().find(|other| is(other, row)) else { continue };
            let written = |choice: &Choice| Some(choice.settings.first()?.1.origin.clone());
            let Some(origin) = row.iter().chain(twin).find_map(written) else { continue };
            let values: Vec<String> = row.iter().map(|choice| plain(&choice.shown)).collect();
            bail!(
                "{origin}: axes.{}: expected values that differ, found `{}` twice",
                self.names.join(", "),
                values.join(", ")
            );
        }
        Ok(())
    }

    fn is_seed(&self) -> bool {
        self.names.iter().any(|name| name == SEED)
    }

    /// Whether each draw is made with all of its values, and not with one of them: so it is with seeds that are listed.
    fn is_crossed(&self) -> bool {
        self.names == [SEED] && self.when.is_empty() && matches!(self.rows, Rows::Listed(_))
    }

    fn applies(&self, choices: &[Choice]) -> bool {
        self.when.iter().all(|condition| condition.holds(choices))
    }

    fn len(&self) -> f64 {
        match &self.rows {
            Rows::Listed(rows) => rows.len() as f64,
            Rows::Drawn(_) => 1.0,
        }
    }
}

/// A number from 0 up to but without 1, of a stream for each axis: the 53 high bits of a hash.
fn uniform(seed: u64, axis: &str, index: u64) -> f64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(&index.to_le_bytes()).update(axis.as_bytes());
    let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("a hash is longer");
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

/// The axes as groups; a zipped group's rows are those of its axes side by side.
fn zipped(tree: &Written, mut axes: Vec<Axis>) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    let Some(zip) = tree.get("zip") else {
        return Ok(axes.into_iter().map(Group::of).collect());
    };
    let items = zip.items("zip")?;
    let is_list = |item: &&Written| matches!(item.node, Node::List(_));
    // One group may be written without the outer list.
    let lists: Vec<&Written> = match items.iter().filter(is_list).count() {
        0 => vec![zip],
        count if count == items.len() => items.iter().collect(),
        _ => bail!(
            "{}: zip: expected names of axes, or lists of them, found both\n  help: `[[a, b], [c, d]]` has two pairs",
            zip.origin
        ),
    };
    let all: Vec<String> = axes.iter().map(|axis| axis.name.clone()).collect();
    for list in lists {
        let mut members: Vec<(String, Vec<Choice>)> = Vec::new();
        for name in list.items("zip")? {
            let text = name.text("zip")?;
            if all.iter().any(|axis| axis == text) && !axes.iter().any(|axis| axis.name == text) {
                bail!("{}: zip: expected each axis once, found `{text}` again", name.origin);
            }
            let at = axes.iter().position(|axis| axis.name == text).ok_or_else(|| {
                let near = nearest(text, axes.iter().map(|axis| axis.name.as_str()));
                let help =
                    near.map(|n| format!("\n  help: did you mean `{n}`?")).unwrap_or_default();
                anyhow!("{}: zip: expected the name of an axis, found `{text}`{help}", name.origin)
            })?;
            members.push(zippable(axes.remove(at), &name.origin)?);
        }
        let Some((first, rows)) = members.first() else {
            bail!("{}: zip: expected names of axes, found none", list.origin)
        };
        if members.len() == 1 {
            bail!(
                "{}: zip: expected two axes or more, which go together, found `{first}` alone",
                list.origin
            );
        }
        let count = rows.len();
        if let Some((other, rows)) = members.iter().find(|(_, rows)| rows.len() != count) {
            bail!(
                "{}: zip: expected axes of one length, found {count} values of `{first}` and {} of `{other}`",
                list.origin,
                rows.len()
            );
        }
        let rows = (0..count).map(|i| members.iter().map(|(_, m)| m[i].clone()).collect());
        let rows = Rows::Listed(rows.collect());
        let names = members.iter().map(|(name, _)| name.clone()).collect();
        groups.push(Group { names, rows, when: Vec::new() });
    }
    groups.extend(axes.into_iter().map(Group::of));
    Ok(groups)
}

fn zippable(axis: Axis, origin: &Origin) -> Result<(String, Vec<Choice>)> {
    let name = &axis.name;
    match axis.values {
        Values::Listed(choices) if axis.when.is_empty() => Ok((axis.name, choices)),
        Values::Listed(_) => bail!(
            "{origin}: zip: expected an axis without `when`, found `{name}`, which is not always there"
        ),
        Values::Drawn(_) => bail!(
            "{origin}: zip: expected an axis of values, found `{name}`, which is a distribution\n  help: give it a `count`"
        ),
    }
}
