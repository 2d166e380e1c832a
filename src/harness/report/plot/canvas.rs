//! Shapes and text at fractions of a pixel, written as one SVG document.

use super::{Rgb, Theme, WHITE};
use anyhow::Result;
use plotters::prelude::{DrawingBackend, IntoFont, SVGBackend, ShapeStyle};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontStyle, FontTransform, RGBColor, TextStyle};
use std::fmt::Write;

/// Units of the SVG's coordinates in a pixel: plotters' are whole numbers, so a pixel is made of ten.
const UNITS: f64 = 10.0;

/// What a page is likely to have, in order; the widths of [`text_width`] are those of the first.
const FONTS: &str = "Helvetica, Arial, Liberation Sans, DejaVu Sans, sans-serif";

/// A point in pixels from the upper left corner.
pub type Xy = (f64, f64);

/// A line's looks: width in pixels, dashes as in [`super::Style`].
#[derive(Debug, Clone, Copy)]
pub struct Stroke {
    pub color: Rgb,
    pub width: f64,
    pub opacity: f64,
    pub dash: &'static [f64],
}

impl Stroke {
    pub fn new(color: Rgb, width: f64) -> Stroke {
        Stroke { color, width, opacity: 1.0, dash: &[] }
    }
}

/// Which part of a text stands at its point; vertically it is the middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A line of text.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    pub size: f64,
    pub color: Rgb,
    pub anchor: Anchor,
    pub bold: bool,
}

/// Draws on plotters' SVG backend, in pixels.
pub struct Canvas<'a> {
    theme: Theme,
    backend: SVGBackend<'a>,
    /// The dashes of every path drawn so far: plotters knows none, so they are added at the end.
    dashes: Vec<&'static [f64]>,
}

/// Draws a document of `width` by `height` pixels on the theme's page; `title` and `description` are for those who can't see it.
///
/// # Errors
///
/// When `draw` fails.
pub fn document(
    theme: Theme,
    (width, height): (u32, u32),
    title: &str,
    description: &str,
    draw: impl FnOnce(&mut Canvas) -> Result<()>,
) -> Result<String> {
    let units = (width * UNITS as u32, height * UNITS as u32);
    let mut drawn = String::new();
    let mut canvas =
        Canvas { theme, backend: SVGBackend::with_string(&mut drawn, units), dashes: Vec::new() };
    draw(&mut canvas)?;
    canvas.backend.present()?;
    let dashes = std::mem::take(&mut canvas.dashes);
    drop(canvas);

    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {} {}" role="img" aria-labelledby="title desc">"#,
        units.0, units.1
    )?;
    writeln!(svg, r#"<title id="title">{}</title>"#, escape(title))?;
    writeln!(svg, r#"<desc id="desc">{}</desc>"#, escape(description))?;
    let page = hexadecimal(theme.background());
    writeln!(svg, r#"<rect width="{}" height="{}" fill="{page}"/>"#, units.0, units.1)?;
    let mut dashes = dashes.into_iter();
    // The first line is plotters' own opening tag.
    for line in drawn.lines().skip(1) {
        if let Some(rest) = line.strip_prefix("<polyline ") {
            svg.push_str(r#"<polyline stroke-linejoin="round" "#);
            let dash = dashes.next().expect("a path has dashes, none of them maybe");
            if !dash.is_empty() {
                let lengths: Vec<_> = dash.iter().map(|d| format!("{}", d * UNITS)).collect();
                write!(svg, r#"stroke-dasharray="{}" "#, lengths.join(" "))?;
            }
            svg.push_str(rest);
        } else if let Some(rest) = line.strip_prefix("<text ") {
            // A rim of the page's colour keeps text legible where it crosses a line.
            write!(
                svg,
                r#"<text paint-order="stroke" stroke="{page}" stroke-width="30" stroke-linejoin="round" "#
            )?;
            svg.push_str(rest);
        } else {
            svg.push_str(line);
        }
        svg.push('\n');
    }
    Ok(svg)
}

impl Canvas<'_> {
    /// A line through `points`.
    pub fn path(&mut self, points: &[Xy], stroke: Stroke) -> Result<()> {
        let style = ShapeStyle {
            color: rgb(self.theme.of(stroke.color)).mix(stroke.opacity),
            filled: false,
            stroke_width: (stroke.width * UNITS).round() as u32,
        };
        self.backend.draw_path(points.iter().map(units), &style)?;
        self.dashes.push(stroke.dash);
        Ok(())
    }

    pub fn polygon(&mut self, points: &[Xy], color: Rgb) -> Result<()> {
        self.fill(points, self.theme.of(color))
    }

    /// A polygon halfway to the page's colour.
    pub fn pale_polygon(&mut self, points: &[Xy], color: Rgb) -> Result<()> {
        self.fill(points, self.theme.pale(color))
    }

    fn fill(&mut self, points: &[Xy], color: Rgb) -> Result<()> {
        let style = ShapeStyle { color: rgb(color).mix(1.0), filled: true, stroke_width: 0 };
        self.backend.fill_polygon(points.iter().map(units), &style)?;
        Ok(())
    }

    pub fn circle(&mut self, centre: Xy, radius: f64, color: Rgb) -> Result<()> {
        self.fill_circle(centre, radius, self.theme.of(color))
    }

    fn fill_circle(&mut self, centre: Xy, radius: f64, color: Rgb) -> Result<()> {
        let style = ShapeStyle { color: rgb(color).mix(1.0), filled: true, stroke_width: 0 };
        self.backend.draw_circle(units(&centre), (radius * UNITS).round() as u32, &style, true)?;
        Ok(())
    }

    /// A pale circle with a rim of the page's colour, for single seeds.
    pub fn dot(&mut self, centre: Xy, radius: f64, color: Rgb) -> Result<()> {
        self.circle(centre, radius + 0.8, WHITE)?;
        self.fill_circle(centre, radius, self.theme.pale(color))
    }

    pub fn text(&mut self, text: &str, at: Xy, look: Text) -> Result<()> {
        let horizontal = match look.anchor {
            Anchor::Start => HPos::Left,
            Anchor::Middle => HPos::Center,
            Anchor::End => HPos::Right,
        };
        // plotters writes `size / 1.24`.
        let font = (FONTS, look.size * UNITS * 1.24)
            .into_font()
            .style(if look.bold { FontStyle::Bold } else { FontStyle::Normal })
            .transform(FontTransform::None);
        let color = rgb(self.theme.of_text(look.color));
        let style = TextStyle::from(font).color(&color).pos(Pos::new(horizontal, VPos::Center));
        // Line breaks would be mistaken for the document's own.
        self.backend.draw_text(&text.replace(['\n', '\r'], " "), &style, units(&at))?;
        Ok(())
    }
}

fn units(point: &Xy) -> (i32, i32) {
    ((point.0 * UNITS).round() as i32, (point.1 * UNITS).round() as i32)
}

fn hexadecimal([red, green, blue]: Rgb) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

fn rgb([red, green, blue]: Rgb) -> RGBColor {
    RGBColor(red, green, blue)
}

pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Advance widths of Helvetica from the space to the tilde, in thousandths of the font size (Adobe's font metrics).
#[rustfmt::skip]
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278,
    556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556,
    1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778,
    667, 778, 722, 667, 611, 722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556,
    333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556,
    556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

/// The width of `text` in pixels at most: a sixth more than Helvetica's, for the widest of the fonts that may stand in.
pub fn text_width(text: &str, size: f64) -> f64 {
    let thousandths: u32 = text
        .chars()
        .map(|c| {
            let index = (c as usize).wrapping_sub(' ' as usize);
            u32::from(WIDTHS.get(index).copied().unwrap_or(700))
        })
        .sum();
    f64::from(thousandths) / 1000.0 * size * 7.0 / 6.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_closed_and_says_what_it_is() {
        let svg = document(Theme::Light, (100, 50), "a < b", "c & d", |canvas| {
            let dashed = Stroke { dash: &[4.0, 2.0], ..Stroke::new([1, 2, 3], 1.5) };
            canvas.path(&[(0.0, 0.0), (10.25, 5.0)], dashed)?;
            let look = Text { size: 12.0, color: [0; 3], anchor: Anchor::End, bold: true };
            canvas.text("x < y", (50.0, 25.0), look)
        })
        .unwrap();
        assert!(svg.starts_with("<svg xmlns="), "{svg}");
        assert!(svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains(r#"width="100" height="50" viewBox="0 0 1000 500" role="img""#));
        assert!(svg.contains(r#"<title id="title">a &lt; b</title>"#));
        assert!(svg.contains(r#"<desc id="desc">c &amp; d</desc>"#));
        assert!(svg.contains(r#"stroke-dasharray="40 20""#), "{svg}");
        assert!(svg.contains("points=\"0,0 103,50 \""), "{svg}");
        assert!(svg.contains("x &lt; y"), "{svg}");
    }

    #[test]
    fn widths_follow_helvetica() {
        // `MMM` is three times 833 thousandths; `iii` three times 222.
        assert!((text_width("MMM", 12.0) - 3.0 * 0.833 * 12.0 * 7.0 / 6.0).abs() < 1e-9);
        assert!((text_width("iii", 12.0) - 3.0 * 0.222 * 12.0 * 7.0 / 6.0).abs() < 1e-9);
    }
}
