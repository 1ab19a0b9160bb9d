//! Transactions as plain data.

use super::{KeyRange, KeyValue};

/// What a comparison looks at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CompareTarget {
    /// Number of changes; 0 for an absent key.
    Version(i64),
    /// Revision at which the key appeared; 0 for an absent key.
    CreateRevision(i64),
    /// Revision of the last change; 0 for an absent key.
    ModRevision(i64),
    /// The value; never holds for an absent key.
    Value(Vec<u8>),
    /// The lease; 0 for none.
    Lease(i64),
}

/// How the key's side relates to the given one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompareOp {
    /// Equal.
    Equal,
    /// Unequal.
    NotEqual,
    /// Greater.
    Greater,
    /// Less.
    Less,
}

/// A condition on every key of a range; on an absent single key, on zeros.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compare {
    /// Which keys.
    pub range: KeyRange,
    /// What of them and against what.
    pub target: CompareTarget,
    /// How.
    pub op: CompareOp,
}

/// A write of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Put {
    /// Key.
    pub key: Vec<u8>,
    /// `None`: keeps the present value.
    pub value: Option<Vec<u8>>,
    /// 0: no lease; `None`: keeps the present one.
    pub lease: Option<i64>,
}

/// One operation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// Read keys at a revision (0: now, the transaction's earlier writes included).
    Range(KeyRange, i64),
    /// Write a key.
    Put(Put),
    /// Delete keys.
    Delete(KeyRange),
}

/// What an operation gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OpResult {
    /// Keys read.
    Range(Vec<KeyValue>),
    /// What the key was before.
    Put(Option<KeyValue>),
    /// Keys deleted, as they were.
    Delete(Vec<KeyValue>),
}

/// What a transaction gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxnResult {
    /// Whether the conditions held.
    pub succeeded: bool,
    /// Revision afterwards.
    pub revision: i64,
    /// One result for each operation of the branch taken.
    pub results: Vec<OpResult>,
}

impl Compare {
    /// The key appeared at `revision`; 0: is absent.
    pub fn created_at(key: &[u8], revision: i64) -> Self {
        Self { range: KeyRange::key(key), target: CompareTarget::CreateRevision(revision), op: CompareOp::Equal }
    }

    pub(super) fn holds(&self, kv: Option<&KeyValue>) -> bool {
        let absent = KeyValue::default();
        let order = match (&self.target, kv) {
            (CompareTarget::Value(_), None) => return false,
            (CompareTarget::Value(wanted), Some(kv)) => kv.value.cmp(wanted),
            (CompareTarget::Version(wanted), kv) => kv.unwrap_or(&absent).version.cmp(wanted),
            (CompareTarget::CreateRevision(wanted), kv) => kv.unwrap_or(&absent).create_revision.cmp(wanted),
            (CompareTarget::ModRevision(wanted), kv) => kv.unwrap_or(&absent).mod_revision.cmp(wanted),
            (CompareTarget::Lease(wanted), kv) => kv.unwrap_or(&absent).lease.cmp(wanted),
        };
        match self.op {
            CompareOp::Equal => order.is_eq(),
            CompareOp::NotEqual => order.is_ne(),
            CompareOp::Greater => order.is_gt(),
            CompareOp::Less => order.is_lt(),
        }
    }
}
