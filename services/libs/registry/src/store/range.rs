//! Ranges of keys.

use std::ops::Bound;

/// Which keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRange {
    start: Vec<u8>,
    end: End,
}

/// First and last key, for a sorted map.
type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum End {
    /// `start` alone.
    Single,
    /// All keys from `start` on.
    Open,
    /// All keys from `start` on and before this one.
    Before(Vec<u8>),
}

impl KeyRange {
    /// One key.
    pub fn key(key: impl Into<Vec<u8>>) -> Self {
        Self { start: key.into(), end: End::Single }
    }

    /// All keys that begin with `prefix`.
    pub fn prefix(prefix: impl Into<Vec<u8>>) -> Self {
        let start = prefix.into();
        let mut end = start.clone();
        while let Some(last) = end.pop() {
            if last < u8::MAX {
                end.push(last + 1);
                return Self { start, end: End::Before(end) };
            }
        }
        Self { start, end: End::Open }
    }

    /// As etcd's requests write it: an empty end means one key, `\0` means no end.
    pub fn from_wire(start: Vec<u8>, end: Vec<u8>) -> Self {
        let end = match end.as_slice() {
            [] => End::Single,
            [0] => End::Open,
            _ => End::Before(end),
        };
        Self { start, end }
    }

    /// Whether `key` is one of them.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            End::Single => key == self.start,
            End::Open => key >= self.start.as_slice(),
            End::Before(end) => key >= self.start.as_slice() && key < end.as_slice(),
        }
    }

    pub(super) fn is_single(&self) -> bool {
        self.end == End::Single
    }

    pub(super) fn start(&self) -> &[u8] {
        &self.start
    }

    /// Bounds for a sorted map; `None` if no key can be in them.
    pub(super) fn bounds(&self) -> Option<Bounds<'_>> {
        let start = Bound::Included(self.start.as_slice());
        match &self.end {
            End::Single => Some((start, start)),
            End::Open => Some((start, Bound::Unbounded)),
            End::Before(end) => (end > &self.start).then_some((start, Bound::Excluded(end.as_slice()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(range: &KeyRange, inside: &[&[u8]], outside: &[&[u8]]) {
        assert!(inside.iter().all(|key| range.contains(key)), "{range:?}");
        assert!(!outside.iter().any(|key| range.contains(key)), "{range:?}");
    }

    #[test]
    fn ranges_hold_what_etcd_says() {
        check(&KeyRange::key("a"), &[b"a"], &[b"", b"aa", b"b"]);
        check(&KeyRange::prefix("w/1/"), &[b"w/1/", b"w/1/x"], &[b"w/1", b"w/10/x", b"w/10"]);
        check(&KeyRange::prefix([b'a', 255]), &[&[b'a', 255], &[b'a', 255, 255]], &[b"a", b"b"]);
        check(&KeyRange::prefix([255]), &[&[255], &[255, 255]], &[b"a"]);
        check(&KeyRange::prefix(""), &[b"", b"a", &[255]], &[]);
        check(&KeyRange::from_wire(b"b".to_vec(), vec![0]), &[b"b", b"c"], &[b"a"]);
        check(&KeyRange::from_wire(b"b".to_vec(), b"d".to_vec()), &[b"b", b"c"], &[b"d", b"a"]);
        assert_eq!(KeyRange::from_wire(b"d".to_vec(), b"b".to_vec()).bounds(), None);
    }
}
