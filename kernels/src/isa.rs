//! Which instructions the CPU path uses. All levels compute the same bits; they differ in speed.

use std::fmt;

/// An instruction level that this machine has: a value exists only if the machine can run it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Isa(Level);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Level {
    Scalar,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A level that does not exist, or that this machine lacks.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IsaError {
    /// Not one of the names.
    #[error("unknown instruction level {0:?}, expected scalar, neon, avx2 or avx512")]
    Unknown(String),
    /// The machine cannot run it.
    #[error("this machine cannot run instruction level {0}")]
    Missing(&'static str),
}

impl Isa {
    /// Plain Rust, on every machine. Slow: one fused multiply-add at a time.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// The fastest level this machine has.
    pub fn detect() -> Self {
        *Self::available().last().expect("scalar is always there")
    }

    /// All levels this machine has, slowest first.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "other machines add nothing")]
        let mut found = vec![Self::SCALAR];
        #[cfg(target_arch = "aarch64")]
        found.push(Self(Level::Neon));
        #[cfg(target_arch = "x86_64")]
        {
            if has_avx2() {
                found.push(Self(Level::Avx2));
                if has_avx512() {
                    found.push(Self(Level::Avx512));
                }
            }
        }
        found
    }

    /// The level of that name: `scalar`, `neon`, `avx2` (with FMA and F16C) or `avx512` (with BW, DQ, VL and VNNI).
    ///
    /// # Errors
    /// [`IsaError`] if there is no such level or the machine lacks it.
    pub fn named(name: &str) -> Result<Self, IsaError> {
        let known = ["scalar", "neon", "avx2", "avx512"].into_iter().find(|&n| n == name);
        let known = known.ok_or_else(|| IsaError::Unknown(name.to_owned()))?;
        Self::available().into_iter().find(|isa| isa.name() == known).ok_or(IsaError::Missing(known))
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_levels() {
        for isa in Isa::available() {
            assert_eq!(Isa::named(isa.name()), Ok(isa));
        }
        assert_eq!(Isa::named("mmx"), Err(IsaError::Unknown("mmx".into())));
        let foreign = if cfg!(target_arch = "aarch64") { "avx2" } else { "neon" };
        assert_eq!(Isa::named(foreign), Err(IsaError::Missing(foreign)));
        assert!(Isa::available().contains(&Isa::SCALAR));
        assert!(Isa::detect() >= Isa::SCALAR);
    }
}
