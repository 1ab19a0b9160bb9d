//! What speaks for and against a candidate, by name.

/// One part of a score.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Term {
    /// E.g. `queue`.
    pub name: &'static str,
    /// In the policy's measure: seconds for `cost`, else a number that only orders.
    pub value: f64,
}

/// A candidate's score: the sum of its terms; lower is better.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Score {
    /// In the order in which they were thought of.
    pub terms: Vec<Term>,
}

impl Score {
    pub(crate) fn of(name: &'static str, value: f64) -> Self {
        Self { terms: vec![Term { name, value }] }
    }

    pub(crate) fn and(mut self, name: &'static str, value: f64) -> Self {
        self.terms.push(Term { name, value });
        self
    }

    pub(crate) fn plus(mut self, other: Self) -> Self {
        self.terms.extend(other.terms);
        self
    }

    /// The sum.
    pub fn total(&self) -> f64 {
        self.terms.iter().map(|term| term.value).sum()
    }
}
