//! Plots as SVG: a line chart with linear and logarithmic axes and direct labels instead of a legend, small multiples of it for many
//! lines, and a histogram; each on white and on a dark page.
//!
//! plotters draws the primitives ([`canvas`]); ticks, labels and layout are ours ([`axis`], [`mod@line`]), because no fonts are
//! measured here: the same numbers give the same bytes on every machine. Text widths are estimated from a table.

pub mod axis;
pub mod canvas;
pub mod histogram;
pub mod line;
pub mod panels;

/// A colour, `[red, green, blue]`.
pub type Rgb = [u8; 3];

pub const INK: Rgb = [0x22, 0x22, 0x22];
pub const MUTED: Rgb = [0x5F, 0x5F, 0x5F];
pub const GRID: Rgb = [0xE6, 0xE6, 0xE6];
pub const WHITE: Rgb = [0xFF, 0xFF, 0xFF];

/// The page that a plot is read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Theme {
    Light,
    Dark,
}

impl Theme {
    /// What everything is drawn on: the page's own colour; the dark one is GitHub's.
    pub fn background(self) -> Rgb {
        match self {
            Theme::Light => WHITE,
            Theme::Dark => [0x0D, 0x11, 0x17],
        }
    }

    /// How a colour that was chosen for white stands on this page.
    ///
    /// On the dark one, neutral colours have their counterparts and all others are mixed with white until their contrast with the
    /// page is 4.5:1, that of text in WCAG 2.2.
    pub fn of(self, color: Rgb) -> Rgb {
        if self == Theme::Light {
            return color;
        }
        match color {
            WHITE => self.background(),
            INK => [0xE6, 0xED, 0xF3],
            MUTED => [0x9A, 0xA4, 0xAF],
            GRID => [0x2A, 0x30, 0x38],
            color => lifted(color, self.background(), 4.5),
        }
    }

    /// As [`Theme::of`], for text: thin strokes need more contrast than lines, 7:1 on the dark page.
    pub fn of_text(self, color: Rgb) -> Rgb {
        match (self, color) {
            (Theme::Light, _) | (_, INK | MUTED) => self.of(color),
            _ if color == Style::BASELINE.label_color() => self.of(INK),
            _ => lifted(color, self.background(), 7.0),
        }
    }

    /// As [`Theme::of`], halfway to the page.
    pub fn pale(self, color: Rgb) -> Rgb {
        mix(self.of(color), self.background(), 0.5)
    }
}

/// The colour, mixed with as much white as it takes for that contrast.
fn lifted(color: Rgb, background: Rgb, wanted: f64) -> Rgb {
    let mixed = (0..=20).map(|twentieths| mix(WHITE, color, f64::from(twentieths) / 20.0));
    mixed.into_iter().find(|&mixed| contrast(mixed, background) >= wanted).unwrap_or(WHITE)
}

/// `share` of `a`, the rest of `b`.
fn mix(a: Rgb, b: Rgb, share: f64) -> Rgb {
    let channel =
        |i: usize| (f64::from(a[i]) * share + f64::from(b[i]) * (1.0 - share)).round() as u8;
    [channel(0), channel(1), channel(2)]
}

/// The contrast ratio of two colours, 1 to 21: WCAG 2.2, <https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio>.
fn contrast(a: Rgb, b: Rgb) -> f64 {
    let luminance = |color: Rgb| -> f64 {
        let linear = color.map(|channel| match f64::from(channel) / 255.0 {
            low if low <= 0.04045 => low / 12.92,
            high => ((high + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// Okabe and Ito's palette without its yellow (too pale on white), then Tol's muted one: told apart with any colour vision.
const PALETTE: [Rgb; 11] = [
    [0x00, 0x72, 0xB2],
    [0xD5, 0x5E, 0x00],
    [0x00, 0x9E, 0x73],
    [0xCC, 0x79, 0xA7],
    [0xE6, 0x9F, 0x00],
    [0x56, 0xB4, 0xE9],
    [0x33, 0x22, 0x88],
    [0x99, 0x99, 0x33],
    [0x88, 0x22, 0x55],
    [0x44, 0xAA, 0x99],
    [0x8C, 0x56, 0x4B],
];

/// Lengths of dashes and gaps, in pixels; the first is solid.
const DASHES: [&[f64]; 4] = [&[], &[7.0, 3.0], &[2.0, 3.0], &[9.0, 3.0, 2.0, 3.0]];

/// The shape of a series' markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    InvertedTriangle,
}

const MARKERS: [Marker; 5] =
    [Marker::Circle, Marker::Square, Marker::Triangle, Marker::Diamond, Marker::InvertedTriangle];

/// How a series looks: colour, dashes and markers, so that no two differ by colour alone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Style {
    pub color: Rgb,
    pub dash: &'static [f64],
    pub marker: Marker,
}

impl Style {
    /// The baseline's: black and solid.
    pub const BASELINE: Style = Style { color: INK, dash: &[], marker: Marker::Circle };

    /// The look of the series `index`, counted without the baseline.
    pub fn of(index: usize) -> Style {
        Style {
            color: PALETTE[index % PALETTE.len()],
            dash: DASHES[(index + index / PALETTE.len()) % DASHES.len()],
            marker: MARKERS[(index + 1) % MARKERS.len()],
        }
    }

    /// The colour of the series' label: darkened, so that pale colours can be read as text.
    pub fn label_color(&self) -> Rgb {
        self.color.map(|channel| (f64::from(channel) * 0.72) as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_to_be_read_can_be_read_on_both_pages() {
        // Black on white is 21:1, and what is the same has 1:1.
        assert!((contrast([0; 3], WHITE) - 21.0).abs() < 1e-9);
        assert!((contrast(MUTED, MUTED) - 1.0).abs() < 1e-9);
        for theme in [Theme::Light, Theme::Dark] {
            let styles = (0..22).map(Style::of).chain([Style::BASELINE]);
            let texts = styles.map(|style| style.label_color()).chain([INK, MUTED]);
            for color in texts.map(|color| theme.of_text(color)) {
                // The palest names on white are 3.9:1, in a larger size.
                let found = contrast(color, theme.background());
                assert!(found >= 3.9, "{theme:?} {color:?}: {found}");
            }
            let grid = contrast(theme.of(GRID), theme.background());
            assert!((1.15..2.0).contains(&grid), "{theme:?}: the grid is {grid}");
        }
        assert_eq!(Theme::Light.pale([0, 0x72, 0xB2]), [0x80, 0xB9, 0xD9]);
    }
}
