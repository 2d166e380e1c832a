//! The shuffle of Python's `random`, so that an order that is known by its seed comes out the same.

use rand_mt::Mt;

/// Shuffles `items` as `random.Random(seed).shuffle(items)` does in Python 3: Fisher and Yates from the end, over the
/// Mersenne Twister MT19937.
pub fn shuffle<T>(items: &mut [T], seed: u64) {
    // Python gives the generator a whole number as a list of its 32-bit digits, the lowest first and no zeros above.
    let digits = [seed as u32, (seed >> 32) as u32];
    let num_digits = if digits[1] == 0 { 1 } else { 2 };
    let mut generator = Mt::new_with_key(digits[..num_digits].iter().copied());
    for last in (1..items.len()).rev() {
        items.swap(last, below(last as u32 + 1, &mut generator));
    }
}

/// A number below `n`: as many of the highest bits as `n` has, until they are below it.
fn below(n: u32, generator: &mut Mt) -> usize {
    let num_bits = 32 - n.leading_zeros();
    loop {
        let bits = generator.next_u32() >> (32 - num_bits);
        if bits < n {
            return bits as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `random.Random(seed).shuffle` of Python 3.11.
    #[test]
    fn orders_are_those_of_python() {
        let check = |seed: u64, expected: &[usize]| {
            let mut order: Vec<usize> = (0..expected.len()).collect();
            shuffle(&mut order, seed);
            assert_eq!(order, expected);
        };
        check(42, &[]);
        check(42, &[0]);
        check(42, &[1, 0]);
        check(42, &[1, 0, 2]);
        check(42, &[2, 1, 3, 0]);
        check(42, &[3, 1, 2, 4, 0]);
        check(42, &[3, 4, 6, 7, 2, 5, 0, 1]);
        check(42, &[7, 3, 2, 8, 5, 6, 9, 4, 0, 1]);
        check(0, &[4, 1, 5, 2, 0, 3, 7, 6]);
        check(1, &[3, 6, 1, 5, 7, 0, 4, 2]);
        check((1 << 32) + 5, &[5, 6, 1, 0, 4, 7, 3, 2]);
        check(u64::MAX, &[5, 7, 3, 6, 4, 2, 1, 0]);
    }
}
