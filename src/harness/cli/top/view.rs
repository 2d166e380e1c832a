//! The screen.

use super::state::{Row, State};
use crate::store::Status;
use fathom_spec::units::{Bytes, format_number, format_seconds};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Table};

/// Characters of the line that the losses are drawn in.
const SPARK: usize = 20;

/// The bars of such a line, low to high.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Runs that have said nothing for so long are marked.
const SILENT_SECONDS: f64 = 60.0;

/// Draws the state.
pub fn draw(frame: &mut Frame, state: &State) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(Paragraph::new(heading(state)), head);
    if state.rows.is_empty() {
        let text = "no run is at work; `a` shows those that are over";
        frame.render_widget(Paragraph::new(text).style(Style::new().fg(Color::DarkGray)), body);
    } else {
        frame.render_widget(table(state), body);
    }
    let help = "q quit   a runs that are over   ↑ ↓ scroll";
    frame.render_widget(Paragraph::new(help).style(Style::new().fg(Color::DarkGray)), foot);
}

fn heading(state: &State) -> Line<'static> {
    let mut spans = vec![Span::styled("fathom", Style::new().add_modifier(Modifier::BOLD))];
    for (status, count) in &state.counts {
        spans.push(Span::raw(format!("   {count} {status}")));
    }
    Line::from(spans)
}

fn table(state: &State) -> Table<'static> {
    let titles = [
        "run",
        "point",
        "status",
        "step",
        "tokens/s",
        "loss",
        "loss by step",
        "peak memory",
        "time",
        "left",
    ];
    let header = titles.map(|title| Cell::from(title).style(Style::new().fg(Color::DarkGray)));
    let widths = [
        Constraint::Length(8),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(15),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(SPARK as u16),
        Constraint::Length(11),
        Constraint::Length(12),
        Constraint::Length(12),
    ];
    let rows = state.rows.iter().skip(state.skipped).map(line);
    Table::new(rows, widths).header(ratatui::widgets::Row::new(header))
}

fn line(row: &Row) -> ratatui::widgets::Row<'static> {
    let step = match row.steps {
        Some(steps) if steps > 0 => {
            format!("{}/{steps} {}%", row.step, 100 * row.step.min(steps) / steps)
        }
        _ => row.step.to_string(),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
    let silent = row.status == Status::Running && row.silent_seconds > SILENT_SECONDS;
    let status = match (silent, row.status) {
        (true, _) => "silent".to_string(),
        (false, Status::OutOfMemory) => "no memory".into(),
        (false, status) => status.name().into(),
    };
    let color = match row.status {
        _ if silent => Color::Yellow,
        Status::Running => Color::Green,
        Status::Finished => Color::Reset,
        Status::Stopped | Status::Planned => Color::Yellow,
        _ => Color::Red,
    };
    let cells: [Cell; 10] = [
        row.run_id.chars().take(8).collect::<String>().into(),
        row.label.clone().into(),
        Cell::from(status).style(Style::new().fg(color)),
        step.into(),
        or_dash(row.tokens_per_second.map(format_number)).into(),
        or_dash(row.loss.map(format_number)).into(),
        Cell::from(sparkline(&row.losses, SPARK)).style(Style::new().fg(Color::Cyan)),
        or_dash(row.peak_allocated.map(|bytes| Bytes(bytes).to_string())).into(),
        format_seconds(row.seconds).into(),
        or_dash(row.remaining.map(format_seconds)).into(),
    ];
    ratatui::widgets::Row::new(cells)
}

/// Values as bars of one character each, averaged in groups where there are more than `width`; what is no number is a blank.
fn sparkline(values: &[f64], width: usize) -> String {
    let group = values.len().div_ceil(width).max(1);
    let means: Vec<f64> =
        values.chunks(group).map(|chunk| chunk.iter().sum::<f64>() / chunk.len() as f64).collect();
    let finite = means.iter().copied().filter(|x| x.is_finite());
    let low = finite.clone().fold(f64::INFINITY, f64::min);
    let high = finite.fold(f64::NEG_INFINITY, f64::max);
    let bar = |x: &f64| match x.is_finite() {
        true if high > low => BARS[((x - low) / (high - low) * 7.0).round() as usize],
        true => BARS[0],
        false => ' ',
    };
    means.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    fn row(run_id: &str, label: &str, status: Status) -> Row {
        Row {
            run_id: run_id.into(),
            label: label.into(),
            status,
            step: 120,
            steps: Some(400),
            tokens_per_second: Some(48_210.5),
            loss: Some(2.98765),
            losses: (0..60).map(|i| 5.0 - f64::from(i) * 0.03).collect(),
            peak_allocated: Some(18 << 30),
            seconds: 61.4,
            remaining: Some(142.0),
            device: "cuda:0".into(),
            silent_seconds: 0.5,
        }
    }

    fn screen(state: &State) -> String {
        let mut terminal = Terminal::new(TestBackend::new(130, 8)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let lines = buffer.content.chunks(130).map(|cells| {
            let text: String = cells.iter().map(|cell| cell.symbol()).collect();
            text.trim_end().to_string() + "\n"
        });
        lines.collect()
    }

    #[test]
    fn runs_are_drawn() {
        let mut state = State::new(true, None);
        state.counts.insert("finished", 1);
        state.counts.insert("running", 2);
        let silent =
            Row { silent_seconds: 90.0, ..row("a1", "rope=yarn2 seed 1", Status::Running) };
        let mut over = row("b2", "rope=plain seed 0", Status::Finished);
        (over.step, over.remaining, over.losses) = (400, None, vec![3.0, f64::NAN, 3.0]);
        state.rows = vec![row("3f2a9c81d0e4", "rope=yarn2 seed 0", Status::Running), silent, over];
        insta::assert_snapshot!(screen(&state));
        state.scroll(2);
        assert!(!screen(&state).contains("3f2a9c81"), "scrolled past");
        state.rows.clear();
        assert!(screen(&state).contains("no run is at work"));
    }

    #[test]
    fn a_sparkline_has_one_bar_a_group() {
        assert_eq!(sparkline(&[1.0, 2.0, 3.0], 8), "▁▅█");
        assert_eq!(sparkline(&[2.0, f64::NAN, 2.0], 8), "▁ ▁");
        assert_eq!(sparkline(&[], 8), "");
        assert_eq!(sparkline(&[1.0; 100], 20).chars().count(), 20);
    }
}
