//! Axes: where a value stands, which values get a tick, and how ticks are written.

use fathom_spec::units::format_number;

/// How values are spread along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Linear,
    /// Ticks at 1, 2 and 5 times powers of ten.
    Log,
    /// Ticks at powers of two: context lengths and positions.
    Log2,
}

/// An axis from `low` to `high`; logarithmic ones need both above 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    pub title: String,
    pub scale: Scale,
    pub low: f64,
    pub high: f64,
}

impl Axis {
    /// An axis that holds all of `values` (those that its scale can show) with a margin of `pad` of its length on each side.
    ///
    /// Without any such value it goes from 1 to 10.
    pub fn around(
        title: &str,
        scale: Scale,
        pad: f64,
        values: impl IntoIterator<Item = f64>,
    ) -> Axis {
        let shown = values
            .into_iter()
            .filter(|x| x.is_finite() && (scale == Scale::Linear || *x > 0.0))
            .map(|x| stretch(scale, x));
        let (low, high) = shown
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
        let (low, high) = match (low, high) {
            (low, high) if low > high => (stretch(scale, 1.0), stretch(scale, 10.0)),
            (low, high) if low == high && scale == Scale::Linear => {
                let reach = if low == 0.0 { 1.0 } else { low.abs() * 0.5 };
                (low - reach, high + reach)
            }
            (low, high) if low == high => (low - 1.0, high + 1.0),
            (low, high) => (low - pad * (high - low), high + pad * (high - low)),
        };
        Axis {
            title: title.to_string(),
            scale,
            low: unstretch(scale, low),
            high: unstretch(scale, high),
        }
    }

    /// Where `value` stands: 0 at `low`, 1 at `high`, outside of both beyond. NaN where the scale can't show it.
    pub fn position(&self, value: f64) -> f64 {
        let (low, high) = (stretch(self.scale, self.low), stretch(self.scale, self.high));
        (stretch(self.scale, value) - low) / (high - low)
    }

    /// The values that get a tick, and their labels: about `wanted` of them.
    pub fn ticks(&self, wanted: usize) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, wanted),
            Scale::Log => log_ticks(self.low, self.high, wanted),
            Scale::Log2 => log2_ticks(self.low, self.high, wanted),
        };
        values
            .into_iter()
            .map(|x| {
                let label = match self.scale {
                    Scale::Log2 => length_label(x),
                    _ => tick_label(x),
                };
                (x, label)
            })
            .collect()
    }
}

fn stretch(scale: Scale, x: f64) -> f64 {
    match scale {
        Scale::Linear => x,
        Scale::Log => x.log10(),
        Scale::Log2 => x.log2(),
    }
}

fn unstretch(scale: Scale, x: f64) -> f64 {
    match scale {
        Scale::Linear => x,
        Scale::Log => 10f64.powf(x),
        Scale::Log2 => x.exp2(),
    }
}

/// Multiples of 1, 2 or 5 times a power of ten: the finest spacing with no more than `wanted` intervals.
fn linear_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let rough = (high - low) / wanted.max(1) as f64;
    let power = rough.log10().floor() as i32;
    let (mantissa, power) = [(1.0, power), (2.0, power), (5.0, power), (10.0, power)]
        .into_iter()
        .find(|&(m, p)| m * 10f64.powi(p) >= rough * (1.0 - 1e-9))
        .expect("ten times the power is above");
    let exact = |multiple: f64| match power {
        // Dividing by a whole power of ten is exact where multiplying by its inverse is not.
        ..0 => multiple * mantissa / 10f64.powi(-power),
        _ => multiple * mantissa * 10f64.powi(power),
    };
    let step = exact(1.0);
    let first = (low / step - 1e-9).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|multiple| exact(multiple as f64)).collect()
}

/// 1, 2 and 5 times powers of ten; over many decades only the powers, over less than one evenly spaced values.
fn log_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let inside = |x: &f64| *x >= low * (1.0 - 1e-9) && *x <= high * (1.0 + 1e-9);
    let of = |mantissas: &[f64]| -> Vec<f64> {
        powers
            .clone()
            .flat_map(|p| {
                mantissas.iter().map(move |m| match p {
                    ..0 => m / 10f64.powi(-p),
                    _ => m * 10f64.powi(p),
                })
            })
            .filter(inside)
            .collect()
    };
    let dense = of(&[1.0, 2.0, 5.0]);
    match dense.len() {
        0..=2 => linear_ticks(low, high, wanted),
        n if n <= wanted + 2 => dense,
        _ => {
            let sparse = of(&[1.0]);
            let every = sparse.len().div_ceil(wanted.max(1)).max(1);
            sparse.into_iter().step_by(every).collect()
        }
    }
}

fn log2_ticks(low: f64, high: f64, wanted: usize) -> Vec<f64> {
    let first = (low.log2() - 1e-9).ceil() as i32;
    let last = (high.log2() + 1e-9).floor() as i32;
    let powers: Vec<f64> = (first..=last).map(|p| f64::from(p).exp2()).collect();
    if powers.len() < 2 {
        return linear_ticks(low, high, wanted);
    }
    let every = powers.len().div_ceil(wanted.max(1)).max(1);
    powers.into_iter().step_by(every).collect()
}

/// A tick as it is written: `0.05`, `20`, `50K`, `1e-5`.
fn tick_label(x: f64) -> String {
    match x.abs() {
        size if (10_000.0..1e9).contains(&size) && x % 100.0 == 0.0 => match size {
            1e6.. => format!("{}M", x / 1e6),
            _ => format!("{}K", x / 1e3),
        },
        size if size > 0.0 && size < 1e-2 => {
            format!("{x:e}")
        }
        _ => format_number(x),
    }
}

/// A number of tokens as context lengths are written: `512`, `1K` for 1,024, `1.5K`, otherwise in full.
pub fn length_label(tokens: f64) -> String {
    let (thousands, millions) = (tokens / 1024.0, tokens / 1_048_576.0);
    match () {
        () if millions >= 1.0 && millions.fract() == 0.0 => format!("{millions}M"),
        () if thousands >= 1.0 && (thousands * 2.0).fract() == 0.0 => format!("{thousands}K"),
        // Four digits would not tell it from its neighbours.
        () if millions >= 1.0 && tokens.fract() == 0.0 => format!("{tokens:.0}"),
        () => format_number(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(scale: Scale, low: f64, high: f64, expected: &[&str]) {
        let axis = Axis { title: String::new(), scale, low, high };
        let labels: Vec<String> = axis.ticks(8).into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, expected);
    }

    #[test]
    fn linear_ticks_are_round() {
        check(Scale::Linear, 0.0, 1.0, &["0", "0.2", "0.4", "0.6", "0.8", "1"]);
        check(
            Scale::Linear,
            2.31,
            2.38,
            &["2.31", "2.32", "2.33", "2.34", "2.35", "2.36", "2.37", "2.38"],
        );
        check(
            Scale::Linear,
            0.0,
            40_000.0,
            &["0", "5000", "10K", "15K", "20K", "25K", "30K", "35K", "40K"],
        );
        check(Scale::Linear, -1.0, 1.0, &["-1", "-0.5", "0", "0.5", "1"]);
    }

    #[test]
    fn log_ticks_are_one_two_five() {
        check(Scale::Log, 9.0, 120.0, &["10", "20", "50", "100"]);
        check(
            Scale::Log,
            1e-6,
            1e-3,
            &["1e-6", "2e-6", "5e-6", "1e-5", "2e-5", "5e-5", "1e-4", "2e-4", "5e-4", "1e-3"],
        );
        check(Scale::Log, 1.0, 1e9, &["1", "100", "10K", "1M", "100M"]);
        // Less than one step of 1, 2, 5: evenly spaced values still help.
        check(Scale::Log, 13.1, 14.4, &["13.2", "13.4", "13.6", "13.8", "14", "14.2", "14.4"]);
    }

    #[test]
    fn context_lengths_are_powers_of_two() {
        check(Scale::Log2, 100.0, 1200.0, &["128", "256", "512", "1K"]);
        check(
            Scale::Log2,
            1000.0,
            140_000.0,
            &["1K", "2K", "4K", "8K", "16K", "32K", "64K", "128K"],
        );
        assert_eq!(length_label(1536.0), "1.5K");
        assert_eq!(length_label(1_048_576.0), "1M");
        assert_eq!(length_label(1000.0), "1000");
        assert_eq!(length_label(11_776.0), "11.5K");
        assert_eq!(length_label(12_345_678.0), "12345678");
    }

    #[test]
    fn an_axis_holds_its_values_and_survives_none() {
        let axis = Axis::around("", Scale::Log, 0.1, [10.0, 1000.0, f64::NAN, -3.0]);
        assert!((axis.position(10.0) - 1.0 / 12.0).abs() < 1e-12);
        assert!((axis.position(1000.0) - 11.0 / 12.0).abs() < 1e-12);
        assert!((axis.position(100.0) - 0.5).abs() < 1e-12);
        let empty = Axis::around("", Scale::Log, 0.1, []);
        assert_eq!((empty.low, empty.high), (1.0, 10.0));
        let single = Axis::around("", Scale::Linear, 0.1, [4.0]);
        assert_eq!((single.low, single.high), (2.0, 6.0));
        assert!(single.ticks(6).len() >= 3);
    }

    proptest::proptest! {
        #[test]
        fn ticks_are_inside_and_rise(low in 1e-6f64..1e6, factor in 1.01f64..1e6) {
            for scale in [Scale::Linear, Scale::Log, Scale::Log2] {
                let axis = Axis { title: String::new(), scale, low, high: low * factor };
                let ticks = axis.ticks(8);
                proptest::prop_assert!((2..=11).contains(&ticks.len()), "{scale:?} {ticks:?}");
                proptest::prop_assert!(ticks.is_sorted_by(|a, b| a.0 < b.0));
                for (value, _) in &ticks {
                    proptest::prop_assert!((-1e-6..=1.0 + 1e-6).contains(&axis.position(*value)));
                }
            }
        }
    }
}
