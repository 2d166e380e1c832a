//! What becomes of gradients when the backward has made them: kept, measured, or stepped with and dropped.

use crate::train::optimizer::Optimizer;
use tch::{Kind, Tensor};

/// The gradient of one weight.
pub struct Gradient {
    /// The weight's place in [`crate::model::Model::parameters`].
    pub index: usize,
    /// The weight itself, on the device.
    pub weight: Tensor,
    /// The weight's size, float32 (float64 for float64).
    pub gradient: Tensor,
}

/// Takes gradients as the backward makes them, those of one sublayer together: attention, MLP, norm and head, embedding.
pub trait Gradients {
    fn take(&mut self, sublayer: Vec<Gradient>);
}

/// The square of a norm that is summed on the device.
pub struct Square(Option<Tensor>);

impl Square {
    pub fn new() -> Square {
        Square(None)
    }

    /// Adds the squares of all elements of all gradients; returns their own sum, a float64 scalar on the device.
    pub fn add(&mut self, sublayer: &[Gradient]) -> Tensor {
        self.add_squares(sublayer.iter().map(|g| square_of(&g.gradient)).collect())
    }

    /// The same for gradients of which the sums of squares are known.
    pub fn add_squares(&mut self, mut squares: Vec<Tensor>) -> Tensor {
        if squares.iter().any(|square| square.kind() != squares[0].kind()) {
            squares = squares.iter().map(|square| square.to_kind(Kind::Double)).collect();
        }
        let square = Tensor::stack(&squares, 0).sum(Kind::Double);
        self.0 = Some(match self.0.take() {
            Some(sum) => sum + &square,
            None => square.shallow_clone(),
        });
        square
    }

    /// The norm; waits for the device.
    pub fn root(&self) -> f64 {
        self.0.as_ref().map_or(0.0, |square| square.sqrt().double_value(&[]))
    }
}

/// The sum of squares of a gradient, a float64 scalar on the device.
fn square_of(gradient: &Tensor) -> Tensor {
    let exact = if gradient.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    gradient.norm_scalaropt_dtype(2, exact).to_kind(Kind::Double).square()
}

impl Default for Square {
    fn default() -> Square {
        Square::new()
    }
}

/// Sums the gradients of several micro-batches: one of every weight is held.
#[derive(Default)]
pub struct Held {
    /// In the order of the backward, those of a sublayer together.
    pub sublayers: Vec<Vec<Gradient>>,
}

impl Gradients for Held {
    fn take(&mut self, sublayer: Vec<Gradient>) {
        let first = sublayer[0].index;
        let Some(held) = self.sublayers.iter_mut().find(|held| held[0].index == first) else {
            return self.sublayers.push(sublayer);
        };
        for (held, new) in held.iter_mut().zip(sublayer) {
            held.gradient += new.gradient;
        }
    }
}

impl Held {
    /// Every gradient, in the order of the backward.
    pub fn iter(&self) -> impl Iterator<Item = &Gradient> {
        self.sublayers.iter().flatten()
    }
}

/// Takes the norm of all gradients and drops them: the first of two passes.
#[derive(Default)]
pub struct Measured {
    pub square: Square,
}

impl Gradients for Measured {
    fn take(&mut self, sublayer: Vec<Gradient>) {
        let _ = self.square.add(&sublayer);
    }
}

/// How gradients that are stepped with as they come are clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Clip {
    None,
    /// Those of each sublayer to this norm.
    PerSublayer(f64),
    /// All by the factor that the first of two passes found.
    Factor(f64),
}

/// Steps each weight as its gradient comes, and drops the gradient.
pub struct Stepped<'a> {
    pub optimizer: &'a mut Optimizer,
    pub learning_rate: f64,
    pub clip: Clip,
    /// Of all gradients, before they are clipped.
    pub square: Square,
}

impl Gradients for Stepped<'_> {
    fn take(&mut self, mut sublayer: Vec<Gradient>) {
        let measured = match self.clip {
            Clip::None => false,
            Clip::Factor(factor) if factor >= 1.0 => false,
            Clip::Factor(factor) => {
                let _ = self.square.add(&sublayer);
                sublayer.iter_mut().for_each(|gradient| gradient.gradient *= factor);
                true
            }
            Clip::PerSublayer(max_norm) => {
                let square = self.square.add(&sublayer);
                clip_sublayer(&mut sublayer, &square, max_norm);
                true
            }
        };
        // A step may come upon the squares of its gradient by itself.
        let mut squares = Vec::new();
        for Gradient { index, weight, gradient } in sublayer {
            let square =
                self.optimizer.step_parameter(index, &weight, &gradient, self.learning_rate);
            if !measured {
                squares.push(square.unwrap_or_else(|| square_of(&gradient)));
            }
        }
        if !measured {
            let _ = self.square.add_squares(squares);
        }
    }
}

/// Scales the gradients of one sublayer so that their norm, whose `square` is known, is at most `max_norm`: the rule of
/// [`crate::train::optimizer::clip_grad_norm`], without waiting for the device.
pub fn clip_sublayer(sublayer: &mut [Gradient], square: &Tensor, max_norm: f64) {
    let factor = ((square.sqrt() + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
    for Gradient { gradient, .. } in sublayer {
        *gradient *= factor.to_kind(gradient.kind());
    }
}
