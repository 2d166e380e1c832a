//! The index of all reports: a row a sweep, with its question and its answer in one line.

use super::answer::headline;
use super::markdown::{in_code, text, without_paths};
use super::summary::Summary;
use super::tables::rows_to_markdown;
use anyhow::Result;
use chrono::DateTime;

/// The page of these sweeps, in their order.
///
/// # Errors
///
/// When the table can't be made.
pub fn page(entries: &[Entry]) -> Result<String> {
    let rows: Vec<Vec<String>> = entries
        .iter()
        .map(|entry| {
            vec![
                format!("[{}]({}/report.md)", text(&entry.sweep), percent_encoded(&entry.sweep)),
                entry.question.clone(),
                entry.answer.clone(),
                entry.runs.clone(),
                entry.planned.clone(),
            ]
        })
        .collect();
    let heads = ["sweep", "question", "answer", "runs", "planned"];
    let table = match rows.is_empty() {
        true => "The store has no sweep.\n".to_string(),
        false => rows_to_markdown(&heads, &rows)?,
    };
    Ok(format!(
        "# Reports\n\nEvery sweep of the store, by name; written by {}. Planned: when the sweep was last planned (UTC).\n\n{table}",
        in_code("fathom report --all")
    ))
}

/// A folder's name in a link (RFC 3986: all but its unreserved characters as `%` and two digits).
fn percent_encoded(name: &str) -> String {
    let encoded = name.bytes().map(|byte| match byte {
        b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    });
    encoded.collect()
}

/// One sweep of the index.
pub struct Entry {
    sweep: String,
    question: String,
    answer: String,
    /// How many have finished, of how many points.
    runs: String,
    planned: String,
}

impl Entry {
    pub fn of(summary: &Summary) -> Entry {
        let comparison = summary.comparison;
        let finished = comparison.points.iter().filter(|point| point.finished().is_some()).count();
        let planned = DateTime::from_timestamp(comparison.planned_at as i64, 0);
        Entry {
            sweep: comparison.sweep.clone(),
            question: question(comparison.question.as_deref().unwrap_or_default()),
            answer: headline(summary),
            runs: match comparison.points.len() {
                all if all == finished => all.to_string(),
                all => format!("{finished} of {all}"),
            },
            planned: planned.map_or("–".into(), |date| date.format("%Y-%m-%d").to_string()),
        }
    }
}

/// Of the comment that opens a sweep file, what goes up to its first question mark; else its first line.
fn question(comment: &str) -> String {
    let lines = comment.lines().map(|line| line.trim_start().trim_start_matches('#').trim());
    let whole = lines.clone().collect::<Vec<_>>().join(" ");
    let asked = match whole.split_once('?') {
        Some((asked, _)) => format!("{asked}?"),
        None => lines.clone().next().unwrap_or_default().to_string(),
    };
    text(&without_paths(&asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_has_no_character_that_means_something_in_it() {
        assert_eq!(percent_encoded("rope_variants-2.1~"), "rope_variants-2.1~");
        assert_eq!(percent_encoded("50% (a b)#ü"), "50%25%20%28a%20b%29%23%C3%BC");
    }

    #[test]
    fn the_question_ends_with_its_mark() {
        assert_eq!(question("# Which one\n# is best? All on one card."), "Which one is best?");
        assert_eq!(question("A ladder.\nOf techniques."), "A ladder.");
        assert_eq!(question(""), "");
    }
}
