//! What two workers must share before they exchange blocks.

use crate::KvGeometry;

/// Oldest protocol this build speaks.
pub const PROTOCOL_MIN: u32 = 1;
/// Newest protocol this build speaks.
pub const PROTOCOL_MAX: u32 = 1;

/// Exchanged at join; a refusal names the fields that differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compatibility {
    /// Oldest and newest protocol spoken.
    pub protocol: (u32, u32),
    /// Content hash of weights and shape parameters, hex.
    pub model_digest: String,
    /// Revision as the model's publisher names it, may be empty.
    pub model_revision: String,
    /// KV cache shape.
    pub geometry: KvGeometry,
    /// RoPE parameters, canonical text.
    pub rope: String,
    /// Attention parameters, canonical text.
    pub attention: String,
    /// Weight quantisation, e.g. `q4_1`.
    pub quantization: String,
    /// Adapters loaded, sorted.
    pub adapters: Vec<String>,
    /// Drafter's digest, empty without one.
    pub drafter: String,
    /// What decides the bits of an answer: the arithmetic's name and version, and the compute mode, e.g.
    /// `cpu-1/auto`. Not what only decides the speed. Unequal ids still pair; their answers are "equivalent".
    pub numerics: String,
}

/// One field in which two documents differ.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mismatch {
    /// Field name.
    pub field: &'static str,
    /// This side's value.
    pub ours: String,
    /// The other side's value.
    pub theirs: String,
}

impl Compatibility {
    /// Fields that forbid pairing; empty: the two may exchange blocks.
    pub fn mismatches(&self, other: &Self) -> Vec<Mismatch> {
        let mut found = Vec::new();
        let mut check = |field, ours: String, theirs: String| {
            if ours != theirs {
                found.push(Mismatch { field, ours, theirs });
            }
        };
        check("model_digest", self.model_digest.clone(), other.model_digest.clone());
        check("model_revision", self.model_revision.clone(), other.model_revision.clone());
        check("geometry", format!("{:?}", self.geometry), format!("{:?}", other.geometry));
        check("rope", self.rope.clone(), other.rope.clone());
        check("attention", self.attention.clone(), other.attention.clone());
        check("quantization", self.quantization.clone(), other.quantization.clone());
        check("adapters", self.adapters.join(","), other.adapters.join(","));
        check("drafter", self.drafter.clone(), other.drafter.clone());
        let (ours, theirs) = (self.protocol, other.protocol);
        if ours.0 > theirs.1 || theirs.0 > ours.1 {
            let range = |p: (u32, u32)| format!("{}..={}", p.0, p.1);
            found.push(Mismatch { field: "protocol", ours: range(ours), theirs: range(theirs) });
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvElement, LayerKv, LayerKvKind};

    fn document() -> Compatibility {
        let layer = LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 3, head_dim: 64 }, window: None };
        Compatibility {
            protocol: (1, 3),
            model_digest: "d".into(),
            model_revision: String::new(),
            geometry: KvGeometry { block_tokens: 16, element: KvElement::F16, layers: vec![layer; 2] },
            rope: "default".into(),
            attention: "causal".into(),
            quantization: "q4_1".into(),
            adapters: vec![],
            drafter: String::new(),
            numerics: "cpu-1/f32".into(),
        }
    }

    #[test]
    fn names_every_field_that_differs_and_no_other() {
        let ours = document();
        assert!(ours.mismatches(&ours).is_empty());
        type Change = fn(&mut Compatibility);
        let cases: [(&str, Change); 9] = [
            ("protocol", |d| d.protocol = (4, 9)),
            ("model_digest", |d| d.model_digest = "e".into()),
            ("model_revision", |d| d.model_revision = "r2".into()),
            ("geometry", |d| d.geometry.element = KvElement::F32),
            ("rope", |d| d.rope = "yarn".into()),
            ("attention", |d| d.attention = "softcap=30".into()),
            ("quantization", |d| d.quantization = "q8_0".into()),
            ("adapters", |d| d.adapters = vec!["a".into()]),
            ("drafter", |d| d.drafter = "x".into()),
        ];
        for (field, change) in cases {
            let mut theirs = document();
            change(&mut theirs);
            let found: Vec<_> = ours.mismatches(&theirs).into_iter().map(|m| m.field).collect();
            assert_eq!(found, [field]);
        }
        let other_bits = Compatibility { numerics: "cpu-2/f32".into(), ..document() };
        assert!(ours.mismatches(&other_bits).is_empty(), "numerics never forbid pairing");
        let newer = Compatibility { protocol: (3, 5), ..document() };
        assert!(ours.mismatches(&newer).is_empty(), "overlapping protocol ranges pair");
    }
}
