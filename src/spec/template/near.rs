//! The nearest of known names, for those that are misspelt.

/// How alike two names must be before one is offered for the other.
const ALIKE: f64 = 0.8;

/// The known name that is most like `name`, if one is like it at all.
pub(super) fn to<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .filter(|known| *known != name)
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > ALIKE)
        .map(|(_, known)| known)
}
