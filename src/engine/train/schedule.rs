//! The learning rate over a run: a curve over the tokens seen, or over the steps done.
//!
//! In tokens, the curve is exact where blocks are short and the same for every batch size. In steps, it is the curve that the
//! tutorial's schedulers have, number for number. `n` below is the position in either.
//!
//! The rate of a step is the curve where the step *begins*. In tokens, the warm-up is the exception, where it is the curve
//! where the step *ends*: a warm-up rises from 0, and a first step at rate 0 would read its tokens and learn nothing. In
//! steps, the first step of a warm-up has that rate of 0. The curve itself is [`Schedule::at`].

use anyhow::{Result, bail};
use fathom_spec::config::{self, ScheduleType};
use serde_json::{Value, json};
use std::f64::consts::PI;

/// The learning rate of every step of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    learning_rate: f64,
    unit: Unit,
    warmup: u64,
    curve: Curve,
}

/// What positions and lengths count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Tokens { per_step: u64 },
    Steps,
}

/// What follows the warm-up.
#[derive(Debug, Clone, PartialEq)]
enum Curve {
    Constant,
    Cosine { min_ratio: f64, length: u64 },
    Wsd { min_ratio: f64, decay_start: u64, decay_length: u64 },
}

impl Schedule {
    /// The schedule of a completed configuration. In tokens, a decay ends with the budget, `total_tokens`.
    pub fn new(
        config: &config::Schedule,
        learning_rate: f64,
        total_tokens: u64,
        tokens_per_step: u64,
    ) -> Schedule {
        let min_ratio =
            || config.min_learning_rate_ratio.expect("completed: min_learning_rate_ratio");
        let (unit, warmup) = match config.in_steps() {
            true => (Unit::Steps, config.warmup_steps.expect("completed: warmup_steps")),
            false => (Unit::Tokens { per_step: tokens_per_step }, config.warmup_tokens.0),
        };
        let in_steps = unit == Unit::Steps;
        let decay_steps = || config.decay_steps.expect("completed: decay_steps");
        let curve = match config.kind {
            ScheduleType::Constant => Curve::Constant,
            ScheduleType::Cosine if in_steps => {
                Curve::Cosine { min_ratio: min_ratio(), length: decay_steps() }
            }
            ScheduleType::Cosine => {
                let length = total_tokens.saturating_sub(warmup);
                Curve::Cosine { min_ratio: min_ratio(), length }
            }
            ScheduleType::Wsd if in_steps => Curve::Wsd {
                min_ratio: min_ratio(),
                decay_start: config.decay_start_step.expect("completed: decay_start_step"),
                decay_length: decay_steps(),
            },
            ScheduleType::Wsd => {
                let decay_length = config.decay_tokens.expect("completed: decay_tokens").0;
                let decay_start = total_tokens.saturating_sub(decay_length);
                Curve::Wsd { min_ratio: min_ratio(), decay_start, decay_length }
            }
        };
        Schedule { learning_rate, unit, warmup, curve }
    }

    /// The position on the curve of the step that begins when so much has been seen and done.
    pub fn position(&self, tokens_seen: u64, steps_done: u64) -> u64 {
        match self.unit {
            Unit::Tokens { .. } => tokens_seen,
            Unit::Steps => steps_done,
        }
    }

    /// The rate of the step that begins at position `n`.
    pub fn learning_rate(&self, n: u64) -> f64 {
        match self.unit {
            Unit::Tokens { per_step } if n < self.warmup => {
                self.at((n + per_step).min(self.warmup))
            }
            _ => self.at(n),
        }
    }

    /// The curve at position `n`.
    ///
    /// - warm-up, `n < w`: `base * n / w`
    /// - constant: `base`
    /// - cosine from `base` to `min` over its length, which is what is left of the budget where lengths are in tokens
    ///   (Loshchilov and Hutter 2017, without restarts, <https://arxiv.org/abs/1608.03983>)
    /// - warm-up, stable, decay (Hu et al. 2024, <https://arxiv.org/abs/2404.06395>): `base`, then with `t` from 0 to 1 over
    ///   the decay `1 / (t / min + (1 - t) / base)`, the harmonic way down
    pub fn at(&self, n: u64) -> f64 {
        if n < self.warmup {
            return self.learning_rate * n as f64 / self.warmup as f64;
        }
        let progress = |start: u64, length: u64| {
            (n.saturating_sub(start) as f64 / length.max(1) as f64).min(1.0)
        };
        let ratio = match self.curve {
            Curve::Constant => 1.0,
            Curve::Cosine { min_ratio, length } => {
                let t = progress(self.warmup, length);
                (min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + (PI * t).cos())).max(min_ratio)
            }
            // The formula above over `base`, turned so that both of its ends are exact.
            Curve::Wsd { min_ratio, decay_start, decay_length } => {
                let t = progress(decay_start, decay_length);
                (min_ratio / (t + (1.0 - t) * min_ratio)).clamp(min_ratio, 1.0)
            }
        };
        self.learning_rate * ratio
    }

    /// Begins the decay at position `n`, or at the end of the warm-up if that is later. A decay that has begun goes on.
    ///
    /// # Errors
    ///
    /// When the schedule is not `wsd`: the others have no decay to begin.
    pub fn start_decay(&mut self, n: u64) -> Result<()> {
        let Curve::Wsd { decay_start, .. } = &mut self.curve else {
            bail!(
                "train.schedule.type: expected `wsd` to start its decay, found `{}`",
                self.kind_name()
            );
        };
        *decay_start = (*decay_start).min(n.max(self.warmup));
        Ok(())
    }

    /// What positions count: `tokens` or `steps`.
    pub fn unit(&self) -> &'static str {
        match self.unit {
            Unit::Tokens { .. } => "tokens",
            Unit::Steps => "steps",
        }
    }

    /// Where the decay of `wsd` begins: what a resumed run gives back to [`Schedule::start_decay`].
    pub fn decay_start(&self) -> Option<u64> {
        match self.curve {
            Curve::Wsd { decay_start, .. } => Some(decay_start),
            _ => None,
        }
    }

    /// Every option in use, by its key path.
    pub fn describe(&self) -> Vec<(String, Value)> {
        let unit = self.unit();
        let mut facts = vec![
            ("learning_rate".to_string(), json!(self.learning_rate)),
            ("schedule.type".to_string(), json!(self.kind_name())),
            (format!("schedule.warmup_{unit}"), json!(self.warmup)),
        ];
        let mut add = |key: &str, value: Value| facts.push((format!("schedule.{key}"), value));
        match self.curve {
            Curve::Constant => {}
            Curve::Cosine { min_ratio, length } => {
                if self.unit == Unit::Steps {
                    add("decay_steps", json!(length));
                }
                add("min_learning_rate_ratio", json!(min_ratio));
            }
            Curve::Wsd { min_ratio, decay_start, decay_length } => {
                add(&format!("decay_{unit}"), json!(decay_length));
                if self.unit == Unit::Steps {
                    add("decay_start_step", json!(decay_start));
                }
                add("min_learning_rate_ratio", json!(min_ratio));
            }
        }
        facts.into_iter().map(|(key, value)| (format!("train.{key}"), value)).collect()
    }

    fn kind_name(&self) -> &'static str {
        match self.curve {
            Curve::Constant => "constant",
            Curve::Cosine { .. } => "cosine",
            Curve::Wsd { .. } => "wsd",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fathom_spec::units::Tokens;
    use proptest::prelude::*;

    const BASE: f64 = 4e-5;

    fn config(kind: ScheduleType, warmup: u64, decay: u64, min_ratio: f64) -> config::Schedule {
        config::Schedule {
            kind,
            warmup_tokens: Tokens(warmup),
            decay_tokens: (kind == ScheduleType::Wsd).then_some(Tokens(decay)),
            min_learning_rate_ratio: (kind != ScheduleType::Constant).then_some(min_ratio),
            ..config::Schedule::default()
        }
    }

    /// A budget of 100K tokens, 1K a step, with a warm-up of 10K and, for `wsd`, a decay of 40K.
    fn schedule(kind: ScheduleType) -> Schedule {
        Schedule::new(&config(kind, 10_000, 40_000, 0.1), BASE, 100_000, 1000)
    }

    fn check(found: f64, expected: f64) {
        assert!((found - expected).abs() <= 1e-12 * expected, "{found}, expected {expected}");
    }

    #[test]
    fn wsd_is_harmonic() {
        let wsd = schedule(ScheduleType::Wsd);
        let min = 0.1 * BASE;
        assert_eq!(wsd.at(0), 0.0);
        check(wsd.at(2500), 0.25 * BASE);
        assert_eq!(wsd.at(10_000), BASE);
        assert_eq!(wsd.at(60_000), BASE);
        check(wsd.at(70_000), 1.0 / (0.25 / min + 0.75 / BASE));
        check(wsd.at(80_000), 1.0 / (0.5 / min + 0.5 / BASE));
        assert_eq!(wsd.at(100_000), min);
        assert_eq!(wsd.at(200_000), min);
    }

    #[test]
    fn a_warmup_wastes_no_step() {
        let wsd = schedule(ScheduleType::Wsd);
        check(wsd.learning_rate(0), 0.1 * BASE);
        check(wsd.learning_rate(1000), 0.2 * BASE);
        assert_eq!(wsd.learning_rate(9000), BASE);
        // A short block before left the step off the grid.
        assert_eq!(wsd.learning_rate(9500), BASE);
        for n in [10_000, 60_000, 80_000, 99_000] {
            assert_eq!(wsd.learning_rate(n), wsd.at(n));
        }
    }

    /// The tutorial's scheduler: rate `n` is that of the step after `n` steps, in `f64` as its formula has it.
    #[test]
    fn row_27_wsd_in_steps_equals_the_formula_at_every_step() {
        let formula = |n: u64, warmup: u64, start: u64, decay: u64, min: f64| -> f64 {
            if n < warmup {
                return BASE * n as f64 / warmup as f64;
            }
            if n < start {
                return BASE;
            }
            let t = ((n - start) as f64 / decay as f64).min(1.0);
            1.0 / (t / min + (1.0 - t) / BASE)
        };
        // A usual run; the tutorial's, which the end of the run cuts off; one without a stable phase.
        for (warmup, start, decay, steps) in
            [(20, 150, 50, 200), (0, 0, 2570, 1799), (10, 10, 90, 100)]
        {
            let written = config::Schedule {
                kind: ScheduleType::Wsd,
                warmup_steps: Some(warmup),
                decay_steps: Some(decay),
                decay_start_step: Some(start),
                min_learning_rate_ratio: Some(0.1),
                ..config::Schedule::default()
            };
            let wsd = Schedule::new(&written, BASE, 1, 1);
            for n in 0..steps + 100 {
                assert_eq!(wsd.position(77_777, n), n);
                check(wsd.learning_rate(n), formula(n, warmup, start, decay, 0.1 * BASE));
            }
            assert_eq!(wsd.learning_rate(0), if warmup > 0 { 0.0 } else { BASE });
        }
    }

    #[test]
    fn cosine_and_constant_in_steps() {
        let written = |kind, decay_steps| config::Schedule {
            kind,
            warmup_steps: Some(10),
            decay_steps,
            min_learning_rate_ratio: decay_steps.map(|_| 0.1),
            ..config::Schedule::default()
        };
        let cosine = Schedule::new(&written(ScheduleType::Cosine, Some(90)), BASE, 1, 1);
        assert_eq!((cosine.learning_rate(0), cosine.learning_rate(10)), (0.0, BASE));
        check(cosine.learning_rate(40), BASE * (0.1 + 0.9 * 0.75));
        check(cosine.learning_rate(100), 0.1 * BASE);
        let constant = Schedule::new(&written(ScheduleType::Constant, None), BASE, 1, 1);
        assert_eq!((constant.learning_rate(5), constant.learning_rate(99)), (0.5 * BASE, BASE));
    }

    #[test]
    fn cosine_and_constant() {
        let cosine = schedule(ScheduleType::Cosine);
        assert_eq!(cosine.at(10_000), BASE);
        check(cosine.at(55_000), 0.55 * BASE);
        check(cosine.at(40_000), BASE * (0.1 + 0.9 * 0.75)); // a third of the way: cos(pi / 3) = 1/2
        check(cosine.at(100_000), 0.1 * BASE);
        let constant = Schedule::new(&config::Schedule::default(), BASE, 100_000, 1000);
        assert_eq!(constant.learning_rate(0), BASE);
        assert_eq!(constant.learning_rate(100_000), BASE);
    }

    #[test]
    fn a_decay_can_start_early() {
        let mut wsd = schedule(ScheduleType::Wsd);
        wsd.start_decay(30_000).unwrap();
        assert_eq!(wsd.learning_rate(30_000), BASE);
        check(wsd.learning_rate(50_000), 1.0 / (0.5 / (0.1 * BASE) + 0.5 / BASE));
        assert_eq!(wsd.learning_rate(70_000), 0.1 * BASE);
        wsd.start_decay(45_000).unwrap();
        assert_eq!(wsd.decay_start(), Some(30_000));
        wsd.start_decay(5_000).unwrap();
        assert_eq!(wsd.decay_start(), Some(10_000));
        let error = schedule(ScheduleType::Cosine).start_decay(30_000).unwrap_err();
        assert_eq!(
            error.to_string(),
            "train.schedule.type: expected `wsd` to start its decay, found `cosine`"
        );
    }

    #[test]
    fn options_are_described_as_used() {
        let expected = [
            ("train.learning_rate".to_string(), json!(BASE)),
            ("train.schedule.type".to_string(), json!("wsd")),
            ("train.schedule.warmup_tokens".to_string(), json!(10_000)),
            ("train.schedule.decay_tokens".to_string(), json!(40_000)),
            ("train.schedule.min_learning_rate_ratio".to_string(), json!(0.1)),
        ];
        assert_eq!(schedule(ScheduleType::Wsd).describe(), expected);
        let in_steps = config::Schedule {
            kind: ScheduleType::Wsd,
            warmup_steps: Some(1),
            decay_steps: Some(2),
            decay_start_step: Some(3),
            min_learning_rate_ratio: Some(0.5),
            ..config::Schedule::default()
        };
        let names: Vec<String> = Schedule::new(&in_steps, BASE, 1, 1)
            .describe()
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let schedule_names = ["warmup_steps", "decay_steps", "decay_start_step"];
        assert_eq!(names[2..5], schedule_names.map(|name| format!("train.schedule.{name}")));
        assert_eq!(schedule(ScheduleType::Constant).describe().len(), 3);
    }

    fn any_schedule() -> impl Strategy<Value = (Schedule, f64, u64, u64)> {
        let kind = prop_oneof![
            Just(ScheduleType::Constant),
            Just(ScheduleType::Cosine),
            Just(ScheduleType::Wsd)
        ];
        let sizes = (0u64..5000, 0u64..5000, 0u64..5000, 1u64..300);
        (kind, sizes, 0.001f64..=1.0, 1e-6f64..1.0).prop_map(
            |(kind, (warmup, stable, decay, tokens_per_step), min_ratio, base)| {
                let total = warmup + stable + decay;
                let config = config(kind, warmup, decay, min_ratio);
                let schedule = Schedule::new(&config, base, total, tokens_per_step);
                let min = if kind == ScheduleType::Constant { base } else { base * min_ratio };
                (schedule, min, warmup, total)
            },
        )
    }

    proptest! {
        #[test]
        fn rates_stay_between_min_and_base((schedule, min, warmup, total) in any_schedule()) {
            for n in 0..total + 500 {
                let rate = schedule.learning_rate(n);
                let least = if n < warmup { 0.0 } else { min };
                prop_assert!(least <= rate && rate <= schedule.learning_rate, "{rate} at {n}");
                prop_assert!(rate > 0.0, "{rate} at {n}");
            }
        }

        #[test]
        fn rates_rise_in_the_warmup_and_fall_after((schedule, _, warmup, total) in any_schedule()) {
            for n in 0..total + 500 {
                let (here, next) = (schedule.learning_rate(n), schedule.learning_rate(n + 1));
                prop_assert!(if n < warmup { here <= next } else { here >= next }, "{n}: {here} {next}");
            }
        }

        /// One token further the rate has moved by no more than the steepest slope of the curve allows.
        #[test]
        fn curves_have_no_jumps((schedule, min, warmup, total) in any_schedule()) {
            let base = schedule.learning_rate;
            let length = match schedule.curve {
                Curve::Wsd { decay_length, .. } => decay_length,
                _ => total - warmup,
            };
            // The harmonic decay is steepest at its start, by base / min; a cosine in its middle, by pi / 2.
            let steepest = (base / min).max(PI / 2.0) / length.max(1) as f64 * (base - min);
            for n in 0..total + 500 {
                let moved = (schedule.at(n + 1) - schedule.at(n)).abs();
                let allowed = if n < warmup { base / warmup as f64 } else { steepest };
                prop_assert!(moved <= allowed + 1e-12 * base, "{n}: {moved} > {allowed}");
            }
        }
    }
}
