//! What the machine can do at most: work for a clock to time, as close to nothing but reading or nothing but
//! multiplying as a program gets. A kernel's speed is judged as a share of these.

use std::hint::black_box;

use super::Cpu;
use super::lanes::{Kernel, LANES, Lanes, launch};

/// Floats that one task reads: 256 KiB, long enough for the hardware to see a stream.
const TASK_FLOATS: usize = 1 << 16;

/// Loads every float of `data` once, in order, on all threads; returns a sum that depends on each.
///
/// `data`: whole groups of sixteen floats are read, the rest is not.
pub fn read(cpu: &mut Cpu, data: &[f32]) -> f32 {
    let isa = cpu.isa();
    let mut sums = vec![0.0; data.len().div_ceil(TASK_FLOATS)];
    cpu.pool().chunks_mut(&mut sums, 1, |task, sum| {
        let end = data.len().min((task + 1) * TASK_FLOATS);
        sum[0] = launch(isa, Read(&data[task * TASK_FLOATS..end]));
    });
    sums.iter().sum()
}

struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let (vectors, _) = self.0.as_chunks::<LANES>();
        let mut sums = [l.splat(0.0); 4];
        let (fours, rest) = vectors.as_chunks::<4>();
        for four in fours {
            for (sum, vector) in sums.iter_mut().zip(four) {
                *sum = l.add(*sum, l.load(vector));
            }
        }
        for vector in rest {
            sums[0] = l.add(sums[0], l.load(vector));
        }
        l.sum(l.add(l.add(sums[0], sums[1]), l.add(sums[2], sums[3])))
    }
}

/// How many sums stand in registers: which number is fastest depends on the machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tile {
    /// One row of inputs, one vector of outputs.
    One,
    /// One row, two vectors.
    Pair,
    /// Two rows, two vectors.
    Four,
    /// Eight rows, two vectors: for many registers.
    Sixteen,
}

impl Tile {
    /// Every tile.
    pub const ALL: [Self; 4] = [Self::One, Self::Pair, Self::Four, Self::Sixteen];

    /// Sums in a tile: vectors of sixteen.
    const fn sums(self) -> usize {
        match self {
            Self::One => 1,
            Self::Pair => 2,
            Self::Four => 4,
            Self::Sixteen => 16,
        }
    }
}

/// Inputs that a round goes through: they and the weights stay in the first-level cache and in registers.
const ROUND: usize = 8;

/// Multiplies bytes with the level's dot product, `n_tasks` times `n_rounds` rounds over all threads; returns the
/// number of operations, a product and its addition counted as two.
pub fn multiply(cpu: &mut Cpu, tile: Tile, n_tasks: usize, n_rounds: usize) -> u64 {
    let isa = cpu.isa();
    cpu.pool().run(n_tasks, &|_| {
        let sum = match tile {
            Tile::One => launch(isa, Multiply::<1, 1> { n_rounds }),
            Tile::Pair => launch(isa, Multiply::<1, 2> { n_rounds }),
            Tile::Four => launch(isa, Multiply::<2, 2> { n_rounds }),
            Tile::Sixteen => launch(isa, Multiply::<8, 2> { n_rounds }),
        };
        black_box(sum);
    });
    2 * (n_tasks * n_rounds * ROUND * tile.sums() * 4 * LANES) as u64
}

struct Multiply<const R: usize, const V: usize> {
    n_rounds: usize,
}

impl<const R: usize, const V: usize> Kernel for Multiply<R, V> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, l: L) -> f32 {
        let weights: [[u8; 4 * LANES]; V] = black_box(std::array::from_fn(|v| [7 + v as u8; 4 * LANES]));
        let weights = weights.each_ref().map(|w| l.load_bytes(w));
        // Each input comes with its negative, so that sums stay small however many rounds there are.
        let inputs: [[i32; R]; ROUND] = std::array::from_fn(|i| {
            let x = (i / 2) as i8 + 1;
            [i32::from_le_bytes([(if i % 2 == 0 { x } else { -x }) as u8; 4]); R]
        });
        let mut sums = [[l.splat_i32(0); V]; R];
        for _ in 0..self.n_rounds {
            // Opaque, or the compiler would take products that never change out of the loop.
            let mut small = [[l.small(); V]; R];
            for x in black_box(&inputs) {
                for r in 0..R {
                    for v in 0..V {
                        small[r][v] = l.small_dot(small[r][v], weights[v], x[r]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    sums[r][v] = l.add_i32(sums[r][v], l.small_sum(small[r][v]));
                }
            }
        }
        let mut total = l.splat(1.0);
        for sum in sums.as_flattened() {
            total = l.add(total, l.to_float(*sum));
        }
        l.sum(total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Isa;

    #[test]
    fn reading_sees_every_vector() {
        let mut data = vec![0.0; TASK_FLOATS * 2 + 5 * LANES];
        data.iter_mut().step_by(LANES).for_each(|x| *x = 1.0);
        let n_vectors = (data.len() / LANES) as f32;
        for isa in Isa::available() {
            for n_threads in [1, 3] {
                assert_eq!(read(&mut Cpu::new(n_threads, isa), &data), n_vectors, "{isa}");
            }
        }
        assert_eq!(read(&mut Cpu::new(1, Isa::SCALAR), &[]), 0.0);
    }

    #[test]
    fn multiplying_counts_its_work_and_its_sums_cancel() {
        for isa in Isa::available() {
            for tile in Tile::ALL {
                let n = multiply(&mut Cpu::new(2, isa), tile, 3, 5);
                assert_eq!(n, 2 * 3 * 5 * ROUND as u64 * tile.sums() as u64 * 64, "{isa} {tile:?}");
            }
            // Sixteen lanes of 1 and sums of 0: nothing overflowed and no product was lost on one side.
            assert_eq!(launch(isa, Multiply::<2, 2> { n_rounds: 10_000 }), 16.0, "{isa}");
        }
    }
}
