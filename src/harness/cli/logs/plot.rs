//! Curves of runs as a picture.

use super::{Log, Which};
use crate::cli::table;
use crate::export::curves::Curves;
use crate::report::plot::axis::{Axis, Scale};
use crate::report::plot::line::{Dot, LineChart, Series};
use crate::report::plot::{Style, Theme};
use crate::run::write_whole;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use fathom_spec::config::nearest;
use std::collections::BTreeSet;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct PlotArgs {
    #[command(flatten)]
    pub which: Which,
    /// What to draw, a plot for each: loss, eval_loss.validation, grad_norm, learning_rate, tokens_per_second, …
    #[arg(long, value_delimiter = ',', default_value = "loss")]
    pub metrics: Vec<String>,
    /// Training and held-out loss together, and the learning rate below
    #[arg(long, conflicts_with = "metrics")]
    pub loss_curves: bool,
    /// What runs to the right
    #[arg(long, value_enum, default_value_t)]
    pub x_axis: XAxis,
    /// Average over so many steps; what is averaged stays visible, pale
    #[arg(long, value_name = "STEPS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub smooth: u64,
    /// Draw the values on a logarithmic axis
    #[arg(long)]
    pub log_scale: bool,
    /// Other names for the runs, in their order
    #[arg(long, value_delimiter = ',')]
    pub labels: Vec<String>,
    /// The heading, in place of what is drawn
    #[arg(long)]
    pub title: Option<String>,
    /// The file; its ending says whether SVG or PNG [default: plot.svg]
    #[arg(long, short, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The picture's format, where no file says it
    #[arg(long, value_enum)]
    pub format: Option<PictureFormat>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum XAxis {
    #[default]
    Step,
    /// Tokens seen
    Tokens,
    /// Since the run began
    Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PictureFormat {
    Svg,
    Png,
}

/// Points that a curve is drawn with at most; more are averaged in groups.
const CURVE_POINTS: usize = 400;

/// Pixels of a PNG for each of the drawing's.
const PNG_SCALE: f32 = 2.0;

/// Draws runs into a file and says which.
///
/// # Errors
///
/// When no run has the metric, there are more or fewer labels than runs, or the file can't be written.
pub fn draw(args: &PlotArgs, logs: &[Log]) -> Result<PathBuf> {
    let (path, format) = target(args)?;
    let curves: Vec<&Curves> = logs.iter().map(|log| &log.curves).collect();
    let names = names(args, &curves)?;
    let look = Look::of(args, &curves);
    let charts = match args.loss_curves {
        true => loss_curves(look, &curves, &names)?,
        false => args
            .metrics
            .iter()
            .map(|metric| chart(look, metric, &curves, &names))
            .collect::<Result<Vec<_>>>()?,
    };
    let mut drawn = Vec::new();
    for (index, mut chart) in charts.into_iter().enumerate() {
        if let Some(title) = args.title.as_ref().filter(|_| index == 0) {
            chart.title = title.clone();
        }
        drawn.push(chart.to_svg(Theme::Light)?);
    }
    let svg = stacked(&drawn)?;
    match format {
        PictureFormat::Svg => write_whole(&path, svg.as_bytes())?,
        PictureFormat::Png => write_whole(&path, &png(&svg)?)?,
    }
    Ok(path)
}

/// The file and its format; the two must not contradict each other.
fn target(args: &PlotArgs) -> Result<(PathBuf, PictureFormat)> {
    let Some(path) = &args.output else {
        return Ok(match args.format.unwrap_or(PictureFormat::Svg) {
            PictureFormat::Svg => (PathBuf::from("plot.svg"), PictureFormat::Svg),
            PictureFormat::Png => (PathBuf::from("plot.png"), PictureFormat::Png),
        });
    };
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_lowercase());
    let says = match ending.as_deref() {
        Some("svg") => Some(PictureFormat::Svg),
        Some("png") => Some(PictureFormat::Png),
        _ => None,
    };
    match (says, args.format) {
        (Some(says), None) => Ok((path.clone(), says)),
        (says, Some(format)) if says.is_none_or(|says| says == format) => {
            Ok((path.clone(), format))
        }
        _ => bail!(
            "--output: expected a file that ends with .svg or .png as --format has it, found {}",
            path.display()
        ),
    }
}

fn names(args: &PlotArgs, curves: &[&Curves]) -> Result<Vec<String>> {
    if args.labels.is_empty() {
        return Ok(curves.iter().map(|curves| curves.name()).collect());
    }
    ensure!(
        args.labels.len() == curves.len(),
        "--labels: expected {}, one a run, found {}",
        curves.len(),
        args.labels.len()
    );
    Ok(args.labels.clone())
}

fn loss_curves(look: Look, curves: &[&Curves], names: &[String]) -> Result<Vec<LineChart>> {
    let eval =
        curves.iter().flat_map(|c| c.scalars.keys()).find(|key| key.starts_with("eval_loss."));
    let mut charts = vec![chart(look, "loss", curves, names)?];
    if let Some(eval) = eval {
        if let [only] = curves {
            // One run: both losses in one plot.
            let both = &mut charts[0];
            both.series[0].label = "training".into();
            let mut held_out = series(look, only, eval, "held out", 1);
            held_out.markers = true;
            both.series.push(held_out);
            both.title = format!("Loss of {}", names[0]);
            let title = both.y.title.trim_start_matches("training ").to_string();
            both.y = Axis::around(&title, both.y.scale, 0.05, heights(&both.series));
        } else {
            charts.push(chart(look, eval, curves, names)?);
        }
    }
    let with_rate = curves.iter().any(|curves| curves.scalars.contains_key("learning_rate"));
    if with_rate {
        // A schedule is no noise to be averaged, and starts near zero.
        let plain = Look { smooth: 1, log_scale: false, ..look };
        charts.push(chart(plain, "learning_rate", curves, names)?);
    }
    Ok(charts)
}

/// How a chart is drawn.
#[derive(Debug, Clone, Copy)]
struct Look {
    x_axis: XAxis,
    smooth: u64,
    log_scale: bool,
    /// The seconds of the unit that time is shown in, and its name.
    unit: (f64, &'static str),
}

impl Look {
    fn of(args: &PlotArgs, curves: &[&Curves]) -> Look {
        let ends = curves.iter().filter_map(|c| Some(*c.times.last_key_value()?.1 - c.started_at));
        let unit = match ends.fold(0.0, f64::max) {
            longest if longest < 300.0 => (1.0, "seconds"),
            longest if longest < 10_800.0 => (60.0, "minutes"),
            _ => (3600.0, "hours"),
        };
        Look { x_axis: args.x_axis, smooth: args.smooth, log_scale: args.log_scale, unit }
    }
}

fn chart(look: Look, metric: &str, curves: &[&Curves], names: &[String]) -> Result<LineChart> {
    let mut all = Vec::new();
    for (index, (curves, name)) in curves.iter().zip(names).enumerate() {
        if curves.scalars.contains_key(metric) {
            all.push(series(look, curves, metric, name, index));
        }
    }
    if all.is_empty() {
        let known: BTreeSet<&str> =
            curves.iter().flat_map(|c| c.scalars.keys()).map(String::as_str).collect();
        let help = match nearest(metric, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("they have {}", known.into_iter().collect::<Vec<_>>().join(", ")),
        };
        bail!("--metrics: expected what the runs logged, found `{metric}`\n  help: {help}");
    }
    let (what, unit) = words(metric);
    let scale = if look.log_scale { Scale::Log } else { Scale::Linear };
    let log = if look.log_scale { ", log scale" } else { "" };
    let unit = format!("{unit}{log}");
    let unit = unit.trim_start_matches(", ");
    let y_title = if unit.is_empty() { what.clone() } else { format!("{what} ({unit})") };
    let y = Axis::around(&y_title, scale, 0.05, heights(&all));
    let reach = all.iter().flat_map(|s| &s.points).map(|dot| dot.x);
    let x_title = match look.x_axis {
        XAxis::Step => "optimizer step".to_string(),
        XAxis::Tokens => "tokens seen".into(),
        XAxis::Time => format!("{} since the run began", look.unit.1),
    };
    let x = Axis::around(&x_title, Scale::Linear, 0.0, reach);
    let title = match names {
        [name] => format!("{}{} of {name}", what[..1].to_uppercase(), &what[1..]),
        _ => format!("{}{}", what[..1].to_uppercase(), &what[1..]),
    };
    let ends = all.iter().filter_map(|series| {
        let last = series.points.iter().rfind(|dot| dot.y.is_finite())?;
        Some(format!("{}: {} at {}", series.label, table::rounded(last.y), table::rounded(last.x)))
    });
    let description = format!("{what} against {x_title}. {}.", ends.collect::<Vec<_>>().join("; "));
    let note = match look.smooth {
        1 => String::new(),
        steps => format!("mean of {steps} steps; pale: each step"),
    };
    Ok(LineChart {
        title,
        description,
        x,
        y,
        series: all,
        verticals: Vec::new(),
        horizontals: Vec::new(),
        note,
    })
}

/// What the axis has to hold: the curves, and of few of them also what they average.
fn heights(series: &[Series]) -> Vec<f64> {
    let pale = series.iter().flat_map(|s| s.faint.iter().flatten()).map(|(_, y)| *y);
    let pale = pale.filter(|_| series.len() <= 3);
    series.iter().flat_map(|s| &s.points).map(|dot| dot.y).chain(pale).collect()
}

fn series(look: Look, curves: &Curves, metric: &str, name: &str, index: usize) -> Series {
    let mut series = Series::new(name, Style::of(index));
    series.markers = false;
    let raw: Vec<(f64, f64)> = curves.scalars[metric]
        .iter()
        .map(|&(step, value)| (x_of(look, curves, step), scaled(metric, value)))
        .collect();
    let smooth = match metric.starts_with("eval_loss.") {
        true => 1,
        false => usize::try_from(look.smooth).unwrap_or(usize::MAX),
    };
    if smooth > 1 {
        series.faint = vec![thin(&raw)];
    }
    let dot = |(x, y)| Dot { x, y, whisker: None };
    series.points = thin(&smoothed(&raw, smooth)).into_iter().map(dot).collect();
    series
}

fn x_of(look: Look, curves: &Curves, step: u64) -> f64 {
    match look.x_axis {
        XAxis::Step => step as f64,
        XAxis::Tokens => {
            // What was evaluated before the first step had seen none.
            let tokens = curves.scalars.get("tokens").map_or(&[][..], Vec::as_slice);
            let seen = tokens.partition_point(|(at, _)| *at <= step);
            seen.checked_sub(1).map_or(0.0, |at| tokens[at].1)
        }
        XAxis::Time => (curves.time_of(step) - curves.started_at) / look.unit.0,
    }
}

/// The mean of each value and the `window - 1` before it; what is no number is left out.
fn smoothed(curve: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    let mean = |last: usize| {
        let from = (last + 1).saturating_sub(window);
        let numbers = curve[from..=last].iter().map(|(_, y)| *y).filter(|y| y.is_finite());
        let (sum, count) = numbers.fold((0.0, 0.0), |(sum, count), y| (sum + y, count + 1.0));
        sum / count
    };
    if window == 1 {
        return curve.to_vec();
    }
    curve.iter().enumerate().map(|(at, (x, _))| (*x, mean(at))).collect()
}

fn thin(curve: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let group = curve.len().div_ceil(CURVE_POINTS).max(1);
    curve
        .chunks(group)
        .map(|chunk| {
            let n = chunk.len() as f64;
            (chunk.iter().map(|p| p.0).sum::<f64>() / n, chunk.iter().map(|p| p.1).sum::<f64>() / n)
        })
        .collect()
}

/// What a metric is called, and its unit.
fn words(metric: &str) -> (String, String) {
    let (what, unit) = match metric {
        "loss" => ("training loss", "nats per token"),
        "learning_rate" => ("learning rate", ""),
        "grad_norm" => ("gradient norm", ""),
        "step_seconds" => ("time of a step", "seconds"),
        "tokens_per_second" => ("tokens per second", ""),
        "peak_allocated" => ("peak memory allocated", "GiB"),
        "peak_reserved" => ("peak memory reserved", "GiB"),
        other => match other.split_once('.') {
            Some(("eval_loss", split)) => {
                return (format!("loss on {split}"), "nats per token".into());
            }
            _ => (other, ""),
        },
    };
    (what.into(), unit.into())
}

/// As [`words`] has the unit.
fn scaled(metric: &str, value: f64) -> f64 {
    match metric {
        "peak_allocated" | "peak_reserved" => value / (1u64 << 30) as f64,
        _ => value,
    }
}

/// Drawings below each other, as one.
fn stacked(drawings: &[String]) -> Result<String> {
    if let [only] = drawings {
        return Ok(only.clone());
    }
    let size = |svg: &str, name: &str| -> Result<u64> {
        let after = svg.split_once(&format!(" {name}=\"")).context("a drawing has its size")?.1;
        Ok(after.split('"').next().unwrap_or_default().parse()?)
    };
    let (mut width, mut height, mut inner) = (0, 0, String::new());
    for (index, svg) in drawings.iter().enumerate() {
        // Names are of the whole document.
        let svg = svg
            .replacen("<svg ", &format!("<svg y=\"{height}\" "), 1)
            .replace("\"title desc\"", &format!("\"title{index} desc{index}\""))
            .replace("id=\"title\"", &format!("id=\"title{index}\""))
            .replace("id=\"desc\"", &format!("id=\"desc{index}\""));
        width = width.max(size(&svg, "width")?);
        height += size(&svg, "height")?;
        inner.push_str(&svg);
    }
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#FFFFFF\"/>\n{inner}</svg>\n"
    ))
}

/// A drawing as pixels.
fn png(svg: &str) -> Result<Vec<u8>> {
    use resvg::{tiny_skia, usvg};
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_system_fonts();
    ensure!(
        !fonts.is_empty(),
        "png: expected a font on this machine to draw text with, found none\n  help: write an SVG (`-o plot.svg`), or install one, such as DejaVu"
    );
    let tree = usvg::Tree::from_str(svg, &options).context("the drawing")?;
    let size = tree.size().to_int_size().scale_by(PNG_SCALE).context("the drawing's size")?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).context("the drawing")?;
    let scale = tiny_skia::Transform::from_scale(PNG_SCALE, PNG_SCALE);
    resvg::render(&tree, scale, &mut pixels.as_mut());
    pixels.encode_png().context("the drawing as PNG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_looks_back() {
        let curve = [(1.0, 4.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, 6.0)];
        let means: Vec<f64> = smoothed(&curve, 2).into_iter().map(|(_, y)| y).collect();
        assert_eq!(means, [4.0, 3.0, 2.0, 6.0]);
        assert_eq!(smoothed(&curve[..2], 1), curve[..2]);
    }
}
