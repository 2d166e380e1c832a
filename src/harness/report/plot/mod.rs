//! Plots as SVG: a line chart with linear and logarithmic axes and direct labels instead of a legend, and a histogram.
//!
//! plotters draws the primitives ([`canvas`]); ticks, labels and layout are ours ([`axis`], [`mod@line`]), because no fonts are
//! measured here: the same numbers give the same bytes on every machine. Text widths are estimated from a table.

pub mod axis;
pub mod canvas;
pub mod histogram;
pub mod line;

/// A colour, `[red, green, blue]`.
pub type Rgb = [u8; 3];

pub const INK: Rgb = [0x22, 0x22, 0x22];
pub const MUTED: Rgb = [0x5F, 0x5F, 0x5F];
pub const GRID: Rgb = [0xE6, 0xE6, 0xE6];
pub const WHITE: Rgb = [0xFF, 0xFF, 0xFF];

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
