//! Small multiples: one small plot a value of an axis, all on the same axes, where one plot would have too many lines.

use super::canvas::{Anchor, Canvas, Stroke, Text, document, text_width};
use super::line::{Frame, LABEL_SIZE, LineChart, Series, draw_marker, plain, shorten};
use super::{INK, MUTED, Style, Theme};
use anyhow::Result;

/// Small plots that share the axes, title and notes of `chart`.
#[derive(Debug, Clone, PartialEq)]
pub struct Panels {
    /// Its series are not drawn: those of the panels are.
    pub chart: LineChart,
    /// Name and lines of each.
    pub panels: Vec<(String, Vec<Series>)>,
    /// What the lines are called, the same in every panel.
    pub legend: Vec<(String, Style)>,
}

// All in pixels.
const WIDTH: f64 = 258.0;
const HEIGHT: f64 = 150.0;
/// Above a panel: its name.
const HEAD: f64 = 30.0;
/// Below a panel: the ticks of x.
const FOOT: f64 = 30.0;
const GAP: f64 = 22.0;
const ROW: f64 = 19.0;
const SWATCH: f64 = 26.0;

impl Panels {
    /// Draws the panels for a page, three in a row.
    ///
    /// # Errors
    ///
    /// When plotters fails.
    pub fn to_svg(&self, theme: Theme) -> Result<String> {
        let chart = &self.chart;
        let y_ticks = chart.y.ticks(4);
        let widest = y_ticks.iter().map(|(_, label)| text_width(label, LABEL_SIZE));
        let left = widest.fold(0.0, f64::max) + 24.0;
        let columns = self.panels.len().clamp(1, 3);
        let rows = self.panels.len().div_ceil(columns);
        let heads = text_width(&chart.title, 17.0 * 1.06)
            .max(text_width(&chart.y.title, LABEL_SIZE) + text_width(&chart.note, 12.0) + 40.0);
        let width = (columns as f64 * (left + WIDTH + GAP)).max(heads + 24.0).ceil();
        let legend = self.place_legend(width);
        let lines = legend.last().map_or(0, |(_, row)| row + 1);
        let top = 40.0 + ROW * (lines + 1) as f64 + HEAD;
        let pitch = HEAD + HEIGHT + FOOT;
        let height = top - HEAD + pitch * rows as f64 + 30.0;

        let size = (width as u32, height.ceil() as u32);
        document(theme, size, &chart.title, &chart.description, |canvas| {
            let title = Text { size: 17.0, color: INK, anchor: Anchor::Start, bold: true };
            canvas.text(&chart.title, (12.0, 22.0), title)?;
            for ((name, style), (x, row)) in self.legend.iter().zip(&legend) {
                draw_entry(canvas, name, *style, (*x, 48.0 + ROW * *row as f64))?;
            }
            let below = 48.0 + ROW * lines as f64;
            canvas.text(&chart.y.title, (12.0, below), plain(LABEL_SIZE, MUTED, Anchor::Start))?;
            canvas.text(&chart.note, (width - 12.0, below), plain(12.0, MUTED, Anchor::End))?;
            for (index, (name, series)) in self.panels.iter().enumerate() {
                let (column, row) = (index % columns, index / columns);
                let x = left + column as f64 * (left + WIDTH + GAP);
                let y = top + row as f64 * pitch;
                let frame = Frame { left: x, top: y, right: x + WIDTH, bottom: y + HEIGHT };
                self.draw_panel(canvas, &frame, &y_ticks, name, series, width)?;
            }
            let middle = (width / 2.0, height - 16.0);
            canvas.text(&chart.x.title, middle, plain(LABEL_SIZE, MUTED, Anchor::Middle))
        })
    }

    fn draw_panel(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        y_ticks: &[(f64, String)],
        name: &str,
        series: &[Series],
        width: f64,
    ) -> Result<()> {
        let mut panel = LineChart { series: series.to_vec(), ..self.chart.clone() };
        panel.x.title = String::new();
        // Their names would hide those of the panels; the note has them.
        for reference in panel.verticals.iter_mut().chain(&mut panel.horizontals) {
            reference.label = String::new();
        }
        panel.draw_axes(canvas, frame, y_ticks)?;
        panel.draw_references(canvas, frame, width)?;
        panel.draw_lines(canvas, frame)?;
        let look = Text { bold: true, ..plain(LABEL_SIZE, INK, Anchor::Start) };
        canvas.text(&shorten(name), (frame.left, frame.top - 12.0), look)
    }

    /// Where each entry of the legend begins, and in which row of it: left to right, then the next row.
    fn place_legend(&self, width: f64) -> Vec<(f64, usize)> {
        let (mut x, mut row) = (12.0, 0);
        let mut places = Vec::new();
        for (name, _) in &self.legend {
            let takes = SWATCH + 8.0 + text_width(&shorten(name), LABEL_SIZE) + 18.0;
            if x > 12.0 && x + takes > width {
                (x, row) = (12.0, row + 1);
            }
            places.push((x, row));
            x += takes;
        }
        places
    }
}

fn draw_entry(canvas: &mut Canvas, name: &str, style: Style, (x, y): (f64, f64)) -> Result<()> {
    let stroke = Stroke { dash: style.dash, ..Stroke::new(style.color, 2.0) };
    canvas.path(&[(x, y), (x + SWATCH, y)], stroke)?;
    draw_marker(canvas, (x + SWATCH / 2.0, y), style)?;
    let look = plain(LABEL_SIZE, style.label_color(), Anchor::Start);
    canvas.text(&shorten(name), (x + SWATCH + 8.0, y), look)
}

#[cfg(test)]
mod tests {
    use super::super::axis::{Axis, Scale};
    use super::super::line::Dot;
    use super::*;

    #[test]
    fn a_legend_goes_on_in_the_next_row_and_panels_stay_inside() {
        let axis = |title: &str| Axis::around(title, Scale::Linear, 0.0, [0.0, 1.0]);
        let chart = LineChart {
            title: "many".into(),
            description: String::new(),
            x: axis("step"),
            y: axis("loss"),
            series: Vec::new(),
            verticals: Vec::new(),
            horizontals: Vec::new(),
            note: String::new(),
        };
        let line = |name: &str| {
            let mut series = Series::new(name, Style::of(0));
            series.points = [0.0, 1.0].map(|x| Dot { x, y: x, whisker: None }).to_vec();
            series
        };
        let legend = (0..9).map(|i| (format!("learning_rate={i}e-5"), Style::of(i))).collect();
        let panels = (0..7).map(|i| (format!("panel {i}"), vec![line("a"), line("b")])).collect();
        let panels = Panels { chart, panels, legend };
        let places = panels.place_legend(900.0);
        // Four of them have room in a row.
        assert_eq!((places[0], places[4], places[8]), ((12.0, 0), (12.0, 1), (12.0, 2)));
        assert!(places.iter().all(|(x, _)| *x < 900.0), "{places:?}");
        let svg = panels.to_svg(Theme::Dark).unwrap();
        assert_eq!(svg.matches("panel ").count(), 7);
        assert!(svg.contains(r##"fill="#0D1117""##) && !svg.contains("#FFFFFF"), "{svg}");
    }
}
