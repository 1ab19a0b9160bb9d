//! Finds stop strings in text that arrives in pieces.

/// Where a stop string was found, in bytes of the piece that completed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    /// One past its last byte.
    pub(crate) end: usize,
    /// Its length; it may have begun in an earlier piece.
    pub(crate) len: usize,
}

/// Matches several strings at once. The match that is complete first counts, whatever the pieces; of
/// those that end together, the longest.
#[derive(Clone, Debug, Default)]
pub(crate) struct StopMatcher {
    patterns: Vec<Pattern>,
}

/// One string as a Knuth-Morris-Pratt automaton.
#[derive(Clone, Debug)]
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of the first `n` bytes that is also their suffix.
    fallback: Vec<usize>,
    /// Bytes matched at the end of the text so far.
    matched: usize,
}

impl StopMatcher {
    /// Empty strings are passed over.
    pub(crate) fn new(stops: &[String]) -> Self {
        Self { patterns: stops.iter().filter(|s| !s.is_empty()).map(|s| Pattern::new(s.as_bytes())).collect() }
    }

    /// Takes the next piece; must not be called again after a match.
    pub(crate) fn push(&mut self, piece: &str) -> Option<Found> {
        for (i, byte) in piece.bytes().enumerate() {
            let complete = self.patterns.iter_mut().filter_map(|p| p.step(byte)).max();
            if let Some(len) = complete {
                return Some(Found { end: i + 1, len });
            }
        }
        None
    }

    /// How many bytes at the end of the text so far may become part of a match.
    pub(crate) fn n_held(&self) -> usize {
        self.patterns.iter().map(|p| p.matched).max().unwrap_or(0)
    }
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut fallback = vec![0; bytes.len() + 1];
        let mut n = 0;
        for i in 1..bytes.len() {
            while n > 0 && bytes[n] != bytes[i] {
                n = fallback[n];
            }
            n += usize::from(bytes[n] == bytes[i]);
            fallback[i + 1] = n;
        }
        Self { bytes: bytes.to_vec(), fallback, matched: 0 }
    }

    /// The pattern's length if `byte` completes it.
    fn step(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        (self.matched == self.bytes.len()).then_some(self.matched)
    }
}
