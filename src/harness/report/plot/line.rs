//! A line chart whose series are named at their ends.

use super::axis::Axis;
use super::canvas::{Anchor, Canvas, Stroke, Text, Xy, document, text_width};
use super::{GRID, INK, MUTED, Marker, Rgb, Style, Theme};
use anyhow::Result;

/// A line chart. Values that an axis can't show (NaN, 0 on a logarithmic one) leave a gap.
#[derive(Debug, Clone, PartialEq)]
pub struct LineChart {
    pub title: String,
    /// For those who can't see the plot.
    pub description: String,
    pub x: Axis,
    pub y: Axis,
    pub series: Vec<Series>,
    /// Lines across the plot at a value of x, named above it.
    pub verticals: Vec<Reference>,
    /// Lines across the plot at a value of y, named on them.
    pub horizontals: Vec<Reference>,
    /// Explains marks and bars, above the plot on the right.
    pub note: String,
}

/// One line with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    pub label: String,
    pub style: Style,
    pub points: Vec<Dot>,
    /// Whether each point gets a marker.
    pub markers: bool,
    /// Whether the area below the line is filled.
    pub filled: bool,
    /// Thin pale lines behind: single seeds.
    pub faint: Vec<Vec<Xy>>,
    /// Small dots: single seeds.
    pub dots: Vec<Xy>,
    /// Where something failed: an ×; at the top of the plot where y is not known.
    pub crosses: Vec<(f64, Option<f64>)>,
}

/// A point with the interval about it, where there is one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dot {
    pub x: f64,
    pub y: f64,
    pub whisker: Option<(f64, f64)>,
}

/// A value that stands out, with its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Reference {
    pub value: f64,
    pub label: String,
}

impl Series {
    pub fn new(label: &str, style: Style) -> Series {
        Series {
            label: label.to_string(),
            style,
            points: Vec::new(),
            markers: true,
            filled: false,
            faint: Vec::new(),
            dots: Vec::new(),
            crosses: Vec::new(),
        }
    }
}

// All in pixels.
const PLOT_WIDTH: f64 = 620.0;
const PLOT_HEIGHT: f64 = 370.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 58.0;
pub(super) const LABEL_SIZE: f64 = 13.0;
const LABEL_GAP: f64 = 16.5;
/// Between the plot and the labels of its series: leader lines need room.
const LEADER: f64 = 30.0;
/// Points of different series at the same x are set this far apart where they have whiskers.
const DODGE: f64 = 3.0;
/// Longer names are cut in their middle.
const LABEL_CHARS: usize = 40;

/// The plot's rectangle, in pixels.
pub(super) struct Frame {
    pub left: f64,
    pub top: f64,
    pub right: f64,
    pub bottom: f64,
}

impl LineChart {
    /// Draws the chart for a page.
    ///
    /// # Errors
    ///
    /// When plotters fails.
    pub fn to_svg(&self, theme: Theme) -> Result<String> {
        // A single series is what the title says.
        let labels: Vec<String> = match self.series.as_slice() {
            [_] => Vec::new(),
            series => series.iter().map(|s| shorten(&s.label)).collect(),
        };
        let y_ticks = self.y.ticks(7);
        let widest = |texts: &mut dyn Iterator<Item = &String>| {
            texts.map(|text| text_width(text, LABEL_SIZE)).fold(0.0, f64::max)
        };
        let left = widest(&mut y_ticks.iter().map(|(_, label)| label)) + 24.0;
        let right = match labels.is_empty() {
            true => 24.0,
            // The baseline's is bold, and so wider.
            false => LEADER + widest(&mut labels.iter()) * 1.12 + 8.0,
        };
        let plot_height = PLOT_HEIGHT.max(LABEL_GAP * labels.len() as f64);
        let title_size = 17.0;
        let heads = text_width(&self.title, title_size * 1.06)
            .max(text_width(&self.y.title, LABEL_SIZE) + text_width(&self.note, 12.0) + 40.0);
        let plot_width = PLOT_WIDTH.max(heads + 24.0 - left - right);
        let frame = Frame { left, top: TOP, right: left + plot_width, bottom: TOP + plot_height };
        let width = (frame.right + right).ceil();
        let height = (frame.bottom + BOTTOM).ceil();

        let size = (width as u32, height as u32);
        document(theme, size, &self.title, &self.description, |canvas| {
            let title = Text { size: title_size, color: INK, anchor: Anchor::Start, bold: true };
            canvas.text(&self.title, (12.0, 22.0), title)?;
            canvas.text(&self.y.title, (12.0, 48.0), plain(LABEL_SIZE, MUTED, Anchor::Start))?;
            canvas.text(&self.note, (width - 12.0, 48.0), plain(12.0, MUTED, Anchor::End))?;
            self.draw_axes(canvas, &frame, &y_ticks)?;
            self.draw_references(canvas, &frame, width)?;
            self.draw_lines(canvas, &frame)?;
            self.draw_labels(canvas, &frame, &labels)
        })
    }

    /// All series, what is pale behind what is not.
    pub(super) fn draw_lines(&self, canvas: &mut Canvas, frame: &Frame) -> Result<()> {
        for (index, series) in self.series.iter().enumerate() {
            self.draw_behind(canvas, frame, index, series)?;
        }
        for (index, series) in self.series.iter().enumerate() {
            self.draw_series(canvas, frame, index, series)?;
        }
        Ok(())
    }

    pub(super) fn draw_axes(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        y_ticks: &[(f64, String)],
    ) -> Result<()> {
        for (value, label) in y_ticks {
            let y = frame.bottom - self.y.position(*value) * (frame.bottom - frame.top);
            canvas.path(&[(frame.left, y), (frame.right, y)], Stroke::new(GRID, 1.0))?;
            canvas.text(label, (frame.left - 8.0, y), plain(LABEL_SIZE, MUTED, Anchor::End))?;
        }
        let mut free_from = f64::NEG_INFINITY;
        let wanted = ((frame.right - frame.left) / 50.0).clamp(2.0, 12.0);
        for (value, label) in self.x.ticks(wanted as usize) {
            let x = frame.left + self.x.position(value) * (frame.right - frame.left);
            canvas.path(&[(x, frame.top), (x, frame.bottom)], Stroke::new(GRID, 1.0))?;
            canvas.path(&[(x, frame.bottom), (x, frame.bottom + 5.0)], Stroke::new(MUTED, 1.0))?;
            let half = text_width(&label, LABEL_SIZE) / 2.0;
            if x - half >= free_from {
                let at = (x, frame.bottom + 17.0);
                canvas.text(&label, at, plain(LABEL_SIZE, MUTED, Anchor::Middle))?;
                free_from = x + half + 8.0;
            }
        }
        let floor = [(frame.left, frame.bottom), (frame.right, frame.bottom)];
        canvas.path(&floor, Stroke::new(MUTED, 1.2))?;
        let middle = ((frame.left + frame.right) / 2.0, frame.bottom + 42.0);
        canvas.text(&self.x.title, middle, plain(LABEL_SIZE, MUTED, Anchor::Middle))
    }

    pub(super) fn draw_references(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        width: f64,
    ) -> Result<()> {
        let stroke = Stroke { dash: &[4.0, 4.0], ..Stroke::new(MUTED, 1.3) };
        for reference in &self.verticals {
            let x = frame.left + self.x.position(reference.value) * (frame.right - frame.left);
            canvas.path(&[(x, frame.top - 4.0), (x, frame.bottom)], stroke)?;
            let half = text_width(&reference.label, 12.0) / 2.0;
            let at = (x.max(12.0 + half).min(width - 12.0 - half), frame.top - 13.0);
            canvas.text(&reference.label, at, plain(12.0, INK, Anchor::Middle))?;
        }
        for reference in &self.horizontals {
            let y = frame.bottom - self.y.position(reference.value) * (frame.bottom - frame.top);
            canvas.path(&[(frame.left, y), (frame.right, y)], stroke)?;
            let at = (frame.left + 8.0, y - 10.0);
            canvas.text(&reference.label, at, plain(12.0, INK, Anchor::Start))?;
        }
        Ok(())
    }

    /// Areas, single seeds and whiskers: what is never to hide a mean.
    fn draw_behind(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        index: usize,
        series: &Series,
    ) -> Result<()> {
        let color = series.style.color;
        if series.filled {
            let line = series.points.iter().map(|dot| (dot.x, dot.y));
            for mut piece in self.pieces(frame, 0.0, line) {
                let (first, last) = (piece[0], piece[piece.len() - 1]);
                piece.extend([(last.0, frame.bottom), (first.0, frame.bottom)]);
                canvas.pale_polygon(&piece, color)?;
            }
        }
        for line in &series.faint {
            for piece in self.pieces(frame, 0.0, line.iter().copied()) {
                canvas.path(&piece, Stroke { opacity: 0.28, ..Stroke::new(color, 1.0) })?;
            }
        }
        let shift = self.shift(index);
        for dot in &series.points {
            let Some((low, high)) = dot.whisker else { continue };
            let (x, _) = self.at(frame, dot.x, dot.y);
            let bar = [(dot.x, low), (dot.x, high)];
            for piece in self.pieces(frame, shift, bar.into_iter()) {
                // One that leaves the plot says only that it is wide.
                let whole =
                    [low, high].iter().all(|&y| frame.holds((x, self.at(frame, dot.x, y).1)));
                let opacity = if whole { 0.75 } else { 0.35 };
                canvas.path(&piece, Stroke { opacity, ..Stroke::new(color, 1.4) })?;
                for end in [piece[0], piece[piece.len() - 1]] {
                    let inside = end.1 > frame.top + 0.1 && end.1 < frame.bottom - 0.1;
                    if inside && x.is_finite() {
                        let cap = [(end.0 - 3.0, end.1), (end.0 + 3.0, end.1)];
                        canvas.path(&cap, Stroke { opacity: 0.75, ..Stroke::new(color, 1.4) })?;
                    }
                }
            }
        }
        for &(x, y) in &series.dots {
            let (x, y) = self.at(frame, x, y);
            if frame.holds((x, y)) {
                canvas.dot((x + shift, y), 2.0, color)?;
            }
        }
        Ok(())
    }

    fn draw_series(
        &self,
        canvas: &mut Canvas,
        frame: &Frame,
        index: usize,
        series: &Series,
    ) -> Result<()> {
        let style = series.style;
        let shift = self.shift(index);
        let line = series.points.iter().map(|dot| (dot.x, dot.y));
        for piece in self.pieces(frame, shift, line) {
            canvas.path(&piece, Stroke { dash: style.dash, ..Stroke::new(style.color, 2.0) })?;
        }
        for dot in series.points.iter().filter(|_| series.markers || series.points.len() == 1) {
            let (x, y) = self.at(frame, dot.x, dot.y);
            if frame.holds((x, y)) {
                draw_marker(canvas, (x + shift, y), style)?;
            }
        }
        for &(x, y) in &series.crosses {
            let (x, y) = self.at(frame, x, y.unwrap_or(f64::NAN));
            let y = if y.is_finite() {
                y.clamp(frame.top + 8.0, frame.bottom)
            } else {
                frame.top + 8.0
            };
            if x.is_finite() {
                draw_cross(canvas, (x + shift, y), style.color)?;
            }
        }
        Ok(())
    }

    /// Names the series in the right margin, at the height of their ends where there is room; a moved name gets a leader line.
    fn draw_labels(&self, canvas: &mut Canvas, frame: &Frame, labels: &[String]) -> Result<()> {
        let ends: Vec<Option<Xy>> = self
            .series
            .iter()
            .enumerate()
            .map(|(index, series)| {
                // The last that is to be seen: a line that leaves the plot is named where it does.
                let line = series.points.iter().map(|dot| (dot.x, dot.y));
                let drawn = self.pieces(frame, self.shift(index), line);
                let single = || {
                    let (x, y) = self.at(frame, series.points.last()?.x, series.points.last()?.y);
                    frame.holds((x, y)).then_some((x + self.shift(index), y))
                };
                drawn.last().and_then(|piece| piece.last().copied()).or_else(single)
            })
            .collect();
        let wanted: Vec<f64> = ends.iter().map(|end| end.map_or(frame.top, |(_, y)| y)).collect();
        let places = spread(&wanted, LABEL_GAP, frame.top, frame.bottom);
        for ((series, label), (end, y)) in
            self.series.iter().zip(labels).zip(ends.iter().zip(places))
        {
            let x = frame.right + LEADER;
            if let Some(end) = end {
                let begins = end.0 + 7.0;
                let leader = match begins < frame.right {
                    true => vec![(begins, end.1), (x - 5.0, y)],
                    false => vec![(begins, end.1), (x - 10.0, y), (x - 5.0, y)],
                };
                let stroke = Stroke { opacity: 0.55, ..Stroke::new(series.style.color, 1.0) };
                canvas.path(&leader, stroke)?;
            }
            let bold = series.style == Style::BASELINE;
            let look =
                Text { bold, ..plain(LABEL_SIZE, series.style.label_color(), Anchor::Start) };
            canvas.text(label, (x, y), look)?;
        }
        Ok(())
    }

    fn at(&self, frame: &Frame, x: f64, y: f64) -> Xy {
        (
            frame.left + self.x.position(x) * (frame.right - frame.left),
            frame.bottom - self.y.position(y) * (frame.bottom - frame.top),
        )
    }

    /// How far the series `index` is set aside, so that whiskers at the same x don't hide one another.
    fn shift(&self, index: usize) -> f64 {
        let has_whiskers = |s: &Series| s.points.iter().any(|dot| dot.whisker.is_some());
        match self.series.iter().any(has_whiskers) {
            true => (index as f64 - (self.series.len() - 1) as f64 / 2.0) * DODGE,
            false => 0.0,
        }
    }

    /// The parts of a line that lie in the frame, in pixels.
    fn pieces(&self, frame: &Frame, shift: f64, line: impl Iterator<Item = Xy>) -> Vec<Vec<Xy>> {
        let mut pieces: Vec<Vec<Xy>> = Vec::new();
        let mut before: Option<Xy> = None;
        for (x, y) in line {
            let (x, y) = self.at(frame, x, y);
            // An infinite value leaves the frame; a missing one breaks the line.
            let here = (x.is_finite() && !y.is_nan()).then(|| (x + shift, y.clamp(-1e6, 1e6)));
            if let (Some(from), Some(to)) = (before, here)
                && let Some((from, to)) = clip(from, to, frame.top, frame.bottom)
            {
                match pieces.last_mut() {
                    Some(piece) if piece.last() == Some(&from) => piece.push(to),
                    _ => pieces.push(vec![from, to]),
                }
            }
            before = here;
        }
        pieces
    }
}

impl Frame {
    fn holds(&self, (x, y): Xy) -> bool {
        let slack = 0.5;
        x >= self.left - slack
            && x <= self.right + slack
            && y >= self.top - slack
            && y <= self.bottom + slack
    }
}

/// The part of a segment with `top <= y <= bottom`.
fn clip(from: Xy, to: Xy, top: f64, bottom: f64) -> Option<(Xy, Xy)> {
    let (mut begin, mut end) = (0.0f64, 1.0f64);
    let dy = to.1 - from.1;
    for (bound, inward) in [(top, 1.0), (bottom, -1.0)] {
        let (distance, change) = ((from.1 - bound) * inward, dy * inward);
        match change {
            0.0 if distance < 0.0 => return None,
            0.0 => {}
            c if c > 0.0 => begin = begin.max(-distance / c),
            c => end = end.min(-distance / c),
        }
    }
    let along = |t: f64| match t {
        0.0 => from,
        1.0 => to,
        t => (from.0 + t * (to.0 - from.0), from.1 + t * dy),
    };
    (begin <= end).then(|| (along(begin), along(end)))
}

/// Moves `wanted` as little as is needed for them to be `gap` apart and within `low..=high`, keeping their order.
///
/// Neighbours that collide form a block that settles at the mean of its members' wishes (the pool-adjacent-violators
/// algorithm of isotonic regression). Where there is no room for all, they are spread evenly.
pub fn spread(wanted: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let n = wanted.len();
    let gap = if n > 1 { gap.min((high - low) / (n - 1) as f64) } else { gap };
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| wanted[a].total_cmp(&wanted[b]).then(a.cmp(&b)));
    // Without the gaps, the places only have to rise: (sum of wishes, members).
    let mut blocks: Vec<(f64, usize)> = Vec::new();
    for (rank, &index) in order.iter().enumerate() {
        let mut block = (wanted[index] - gap * rank as f64, 1);
        while let Some(&(sum, members)) = blocks.last()
            && sum / members as f64 >= block.0 / block.1 as f64
        {
            block = (block.0 + sum, block.1 + members);
            blocks.pop();
        }
        blocks.push(block);
    }
    let highest = high - gap * n.saturating_sub(1) as f64;
    let mut places = vec![0.0; n];
    let mut rank = 0;
    for (sum, members) in blocks {
        let place = (sum / members as f64).min(highest).max(low);
        for _ in 0..members {
            places[order[rank]] = place + gap * rank as f64;
            rank += 1;
        }
    }
    places
}

pub(super) fn draw_marker(canvas: &mut Canvas, (x, y): Xy, style: Style) -> Result<()> {
    let around =
        |corners: &[Xy]| -> Vec<Xy> { corners.iter().map(|(dx, dy)| (x + dx, y + dy)).collect() };
    let corners: &[Xy] = match style.marker {
        Marker::Circle => return canvas.circle((x, y), 4.0, style.color),
        Marker::Square => &[(-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)],
        Marker::Triangle => &[(0.0, -4.8), (4.4, 3.2), (-4.4, 3.2)],
        Marker::Diamond => &[(0.0, -5.0), (5.0, 0.0), (0.0, 5.0), (-5.0, 0.0)],
        Marker::InvertedTriangle => &[(0.0, 4.8), (4.4, -3.2), (-4.4, -3.2)],
    };
    canvas.polygon(&around(corners), style.color)
}

fn draw_cross(canvas: &mut Canvas, (x, y): Xy, color: Rgb) -> Result<()> {
    for (dx, dy) in [(5.0, 5.0), (5.0, -5.0)] {
        canvas.path(&[(x - dx, y - dy), (x + dx, y + dy)], Stroke::new(color, 2.2))?;
    }
    Ok(())
}

pub(super) fn plain(size: f64, color: Rgb, anchor: Anchor) -> Text {
    Text { size, color, anchor, bold: false }
}

/// A name of at most [`LABEL_CHARS`] characters, cut in its middle where it is longer.
pub(super) fn shorten(label: &str) -> String {
    let chars: Vec<char> = label.chars().collect();
    if chars.len() <= LABEL_CHARS {
        return label.to_string();
    }
    let half = LABEL_CHARS / 2;
    let (head, tail) = (&chars[..half], &chars[chars.len() - half + 1..]);
    format!("{}…{}", head.iter().collect::<String>(), tail.iter().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_clipped_at_the_frame() {
        assert_eq!(clip((0.0, 5.0), (10.0, 15.0), 0.0, 10.0), Some(((0.0, 5.0), (5.0, 10.0))));
        assert_eq!(clip((0.0, -10.0), (10.0, 30.0), 0.0, 10.0), Some(((2.5, 0.0), (5.0, 10.0))));
        assert_eq!(clip((0.0, 1.0), (10.0, 1.0), 0.0, 10.0), Some(((0.0, 1.0), (10.0, 1.0))));
        assert_eq!(clip((0.0, 11.0), (10.0, 11.0), 0.0, 10.0), None);
        assert_eq!(clip((0.0, 11.0), (10.0, 20.0), 0.0, 10.0), None);
    }

    #[test]
    fn labels_that_collide_settle_about_their_mean() {
        assert_eq!(spread(&[10.0, 50.0], 10.0, 0.0, 100.0), [10.0, 50.0]);
        assert_eq!(spread(&[50.0, 50.0], 10.0, 0.0, 100.0), [45.0, 55.0]);
        assert_eq!(spread(&[99.0, 100.0], 10.0, 0.0, 100.0), [90.0, 100.0]);
        assert_eq!(spread(&[0.0, 0.0, 0.0], 40.0, 0.0, 60.0), [0.0, 30.0, 60.0]);
        assert!(spread(&[], 10.0, 0.0, 100.0).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn spread_labels_keep_apart_in_order_and_inside(wanted in proptest::collection::vec(0.0f64..300.0, 1..20)) {
            let places = spread(&wanted, 15.0, 0.0, 300.0);
            let mut sorted: Vec<(f64, f64)> = wanted.iter().copied().zip(places.iter().copied()).collect();
            sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
            for pair in sorted.windows(2) {
                proptest::prop_assert!(pair[1].1 - pair[0].1 >= 15.0 - 1e-6, "{sorted:?}");
                proptest::prop_assert!(pair[0].0 <= pair[1].0, "{sorted:?}");
            }
            proptest::prop_assert!(sorted[0].1 >= -1e-6 && sorted[sorted.len() - 1].1 <= 300.0 + 1e-6);
        }
    }

    #[test]
    fn long_names_are_cut_in_their_middle() {
        assert_eq!(shorten("rope=yarn2"), "rope=yarn2");
        let long = "train.learning_rate=0.0001, model.rope_parameters=yarn";
        let short = shorten(long);
        assert_eq!(short.chars().count(), LABEL_CHARS);
        assert_eq!(short, "train.learning_rate=…ope_parameters=yarn");
    }
}
