//! Which cores a worker's threads get.

use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;

/// Most cores of a list.
const CORES_MAX: usize = 1024;

/// `--pin`: whether threads are bound to cores, and to which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PinArg {
    Off,
    /// Those that this process may use, from the lowest.
    On,
    /// These, ascending.
    Cores(Vec<usize>),
}

impl FromStr for PinArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => return Ok(Self::Off),
            "on" => return Ok(Self::On),
            _ => {}
        }
        let number = |part: &str| {
            let core = part.parse::<usize>().ok().filter(|&core| core < CORES_MAX);
            core.ok_or_else(|| format!("{part:?} is neither `on`, `off` nor a core below {CORES_MAX}"))
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{part:?} goes backwards"));
            }
            cores.extend(first..=last);
        }
        let n = cores.len();
        cores.sort_unstable();
        cores.dedup();
        if cores.len() < n { Err("a core stands there twice".into()) } else { Ok(Self::Cores(cores)) }
    }
}

impl fmt::Display for PinArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On => f.write_str("on"),
            Self::Cores(cores) => f.write_str(&show(cores)),
        }
    }
}

/// Cores as `--pin` takes them, e.g. `0-3,8`.
pub(crate) fn show(cores: &[usize]) -> String {
    let runs = cores.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run[0].to_string(),
    });
    runs.collect::<Vec<_>>().join(",")
}

impl PinArg {
    /// The cores to bind `n_threads` threads of `n_workers` workers to, `n_threads` for each worker in turn; empty
    /// when nothing is bound.
    ///
    /// # Errors
    /// If there are fewer cores than threads, or this process may not use one of them.
    pub(crate) fn cores(&self, n_threads: usize) -> anyhow::Result<Vec<usize>> {
        if *self == Self::Off {
            return Ok(Vec::new());
        }
        let allowed =
            engine::affinity::allowed_cores().context("--pin: cannot tell which cores this process may use")?;
        self.cores_of(n_threads, &allowed)
    }

    fn cores_of(&self, n_threads: usize, allowed: &[usize]) -> anyhow::Result<Vec<usize>> {
        let cores = match self {
            Self::Off => return Ok(Vec::new()),
            Self::On => allowed,
            Self::Cores(cores) => cores,
        };
        if let Some(core) = cores.iter().find(|core| !allowed.contains(core)) {
            anyhow::bail!("--pin: core {core} is not among those that this process may use ({})", show(allowed));
        }
        let n = cores.len();
        anyhow::ensure!(
            n >= n_threads,
            "--pin: {n_threads} threads need as many cores, there are {n} ({})",
            show(cores)
        );
        Ok(cores[..n_threads].to_vec())
    }

    /// How many cores it names, if it names them.
    pub(crate) fn n_cores(&self) -> Option<usize> {
        match self {
            Self::Cores(cores) => Some(cores.len()),
            Self::Off | Self::On => None,
        }
    }
}

/// Workers on one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workers {
    pub(crate) prefill: usize,
    pub(crate) decode: usize,
}

impl Workers {
    /// Threads of each prefill and of each decode worker on `n_cores` cores, at least 1.
    ///
    /// Everyone gets the same; what is left over goes to prefill if it is enough for each, else to decode if it is:
    /// computing prompts takes all the cores there are, decode is held up by memory before that. With plenty of cores one is left to the router.
    pub(crate) fn threads(self, n_cores: usize) -> (usize, usize) {
        let n_workers = (self.prefill + self.decode).max(1);
        let n_cores = if n_cores >= 4 * n_workers { n_cores - 1 } else { n_cores };
        let (each, left) = (n_cores / n_workers, n_cores % n_workers);
        let more = |n: usize| usize::from(n > 0 && left >= n);
        let prefill = more(self.prefill);
        let decode = if prefill == 0 { more(self.decode) } else { 0 };
        ((each + prefill).max(1), (each + decode).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read_and_shown() {
        for (text, cores) in [("0", vec![0]), ("0-3,8", vec![0, 1, 2, 3, 8]), ("9,1-2", vec![1, 2, 9])] {
            let pin: PinArg = text.parse().expect(text);
            assert_eq!(pin, PinArg::Cores(cores));
            assert_eq!(pin.to_string().parse(), Ok(pin));
        }
        assert_eq!(("on".parse(), "off".parse()), (Ok(PinArg::On), Ok(PinArg::Off)));
        for bad in ["", "x", "1-", "3-1", "1,1", "0-2,2", "-1", "0-99999999999", "1024"] {
            assert!(bad.parse::<PinArg>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn there_is_a_core_for_each_thread_or_a_refusal() {
        let allowed = [0, 1, 4, 5];
        let cores = |pin: &str, n| pin.parse::<PinArg>().expect(pin).cores_of(n, &allowed).map_err(|e| e.to_string());
        assert_eq!(cores("off", 9), Ok(vec![]));
        assert_eq!(cores("on", 3), Ok(vec![0, 1, 4]));
        assert_eq!(cores("4-5", 2), Ok(vec![4, 5]));
        assert_eq!(cores("on", 5), Err("--pin: 5 threads need as many cores, there are 4 (0-1,4-5)".into()));
        assert_eq!(cores("5", 2), Err("--pin: 2 threads need as many cores, there are 1 (5)".into()));
        let foreign = "--pin: core 2 is not among those that this process may use (0-1,4-5)";
        assert_eq!(cores("1-2", 1), Err(foreign.into()));
    }

    #[test]
    fn cores_are_shared_out() {
        for ((prefill, decode), n_cores, expected) in [
            ((1, 1), 1, (1, 1)),
            ((1, 1), 2, (1, 1)),
            ((1, 1), 3, (2, 1)),
            ((1, 1), 4, (2, 2)),
            ((1, 1), 8, (4, 3)),
            ((1, 1), 16, (8, 7)),
            ((2, 2), 2, (1, 1)),
            ((2, 1), 8, (3, 2)),
            ((1, 2), 8, (3, 2)),
            ((0, 1), 2, (2, 2)),
            ((0, 3), 7, (2, 2)),
            ((0, 2), 7, (3, 3)),
            ((3, 1), 6, (1, 2)),
        ] {
            assert_eq!(Workers { prefill, decode }.threads(n_cores), expected, "{prefill}P{decode}D on {n_cores}");
        }
        for (prefill, decode) in [(1, 1), (2, 2), (0, 4), (3, 2)] {
            for n_cores in prefill + decode..200 {
                let (p, d) = Workers { prefill, decode }.threads(n_cores);
                assert!(p * prefill + d * decode <= n_cores, "{prefill}P{decode}D on {n_cores}: {p}, {d}");
            }
        }
    }
}
