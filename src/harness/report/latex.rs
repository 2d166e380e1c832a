//! A table of the page as LaTeX, for a paper: `booktabs`, everything else as it stands.

use super::answer::measure_name;
use super::markdown::{capital, method_name};
use super::plot::axis::length_label;
use super::summary::{Measure, Summary};
use anyhow::Result;
use polars::prelude::*;

/// The frame of text, as [`super::tables::to_markdown`] would write it, as a table with its caption.
///
/// # Errors
///
/// When a column is no text.
pub fn table(frame: &DataFrame, caption: &str, label: &str) -> Result<String> {
    let columns: Vec<&StringChunked> =
        frame.columns().iter().map(|column| column.str()).collect::<PolarsResult<_>>()?;
    let row = |cells: &mut dyn Iterator<Item = String>| {
        let cells = cells.collect::<Vec<_>>().join(" & ");
        // What begins a row would be taken for an argument of the command that ends the one before.
        let guard = if cells.starts_with(['[', '*']) { "{}" } else { "" };
        format!("    {guard}{cells} \\\\\n")
    };
    let mut text = format!(
        "% \\usepackage{{booktabs}}\n\\begin{{table}}\n  \\centering\n  \\caption{{{}}}\n  \\label{{tab:{}}}\n  \
         \\begin{{tabular}}{{l{}}}\n    \\toprule\n",
        escape(caption),
        label.replace(|c: char| !c.is_ascii_alphanumeric() && c != ':', "-"),
        "r".repeat(columns.len().saturating_sub(1))
    );
    text.push_str(&row(&mut frame.get_column_names().iter().map(|name| cell(name))));
    text.push_str("    \\midrule\n");
    for at in 0..frame.height() {
        text.push_str(&row(&mut columns.iter().map(|column| cell(column.get(at).unwrap_or("–")))));
    }
    text.push_str("    \\bottomrule\n  \\end{tabular}\n\\end{table}\n");
    Ok(text)
}

/// What the main table shows, for its caption.
pub fn caption(summary: &Summary) -> String {
    let what = match &summary.measure {
        Measure::Perplexity { method, context_length } => format!(
            "Perplexity by context length ({}), judged at {} tokens",
            method_name(method),
            length_label(*context_length as f64)
        ),
        measure => capital(&measure_name(measure)),
    };
    let sure = match summary.has_intervals(&summary.measure) {
        true => "Mean over seeds and half of its 95 % interval",
        false => "One seed, so no intervals",
    };
    format!("{what}. {sure}; bold: the best and all that can't be told from it.")
}

/// A cell of markdown: bold, code spans and escapes become LaTeX's own.
fn cell(markdown: &str) -> String {
    let mut text = String::new();
    let mut chars = markdown.chars().peekable();
    let mut is_bold = false;
    let mut plain = String::new();
    let flush = |plain: &mut String, text: &mut String| {
        let unescaped = plain.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        text.push_str(&escape(&unescaped));
        plain.clear();
    };
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.peek() == Some(&'*') => {
                chars.next();
                flush(&mut plain, &mut text);
                text.push_str(if is_bold { "}" } else { "\\textbf{" });
                is_bold = !is_bold;
            }
            '\\' => plain.extend(chars.next()),
            '`' => {}
            c => plain.push(c),
        }
    }
    flush(&mut plain, &mut text);
    if is_bold { text + "}" } else { text }
}

/// What LaTeX reserves, and the signs that its fonts may lack.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => escaped.extend(['\\', c]),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '\\' => escaped.push_str("\\textbackslash{}"),
            '|' => escaped.push_str("\\textbar{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            '±' => escaped.push_str("$\\pm$"),
            '×' => escaped.push_str("$\\times$"),
            '–' => escaped.push_str("--"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tables::strings;

    #[test]
    fn a_table_is_escaped_and_its_bold_is_kept() {
        let frame = DataFrame::new(
            2,
            vec![
                strings("rope_type", ["a\\*b & 5 %", "c&lt;d"].map(String::from).into_iter()),
                strings("8K", ["**42.15 ± 0.58**", "–"].map(String::from).into_iter()),
            ],
        )
        .unwrap();
        let expected = "% \\usepackage{booktabs}\n\\begin{table}\n  \\centering\n  \\caption{A_B}\n  \\label{tab:s}\n  \
                        \\begin{tabular}{lr}\n    \\toprule\n    rope\\_type & 8K \\\\\n    \\midrule\n    \
                        a*b \\& 5 \\% & \\textbf{42.15 $\\pm$ 0.58} \\\\\n    c\\textless{}d & -- \\\\\n    \
                        \\bottomrule\n  \\end{tabular}\n\\end{table}\n";
        assert_eq!(table(&frame, "A_B", "s").unwrap(), expected.replace("{A_B}", "{A\\_B}"));
    }

    /// A row that begins with a bracket or a star is no argument of `\\\\` or `\\midrule`.
    #[test]
    fn a_row_and_a_label_may_begin_with_anything() {
        let rows = ["\\[1, 2\\]", "\\*a|b &amp;c"].map(String::from).into_iter();
        let frame = DataFrame::new(2, vec![strings("x", rows)]).unwrap();
        let found = table(&frame, "", "a_b c#1").unwrap();
        for expected in [
            "\\label{tab:a-b-c-1}",
            "\\midrule\n    {}[1, 2] \\\\\n",
            "\n    {}*a\\textbar{}b \\&c \\\\\n",
        ] {
            assert!(found.contains(expected), "{expected}: {found}");
        }
    }
}
