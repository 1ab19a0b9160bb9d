//! A member as it is stored: JSON, additive, checked on the way in and out.
//!
//! Readers ignore fields they do not know and refuse a `format` above their own, which a change that old readers
//! would misread must raise.

use serde::{Deserialize, Serialize};
use types::{Compatibility, KvElement, KvEndpoints, KvGeometry, LayerKv, LayerKvKind, WorkerId};

use crate::{Member, RegistryError};

/// Newest format this build reads.
const FORMAT: u32 = 1;
/// Longest record, bytes.
pub(crate) const RECORD_MAX: usize = 64 << 10;
/// Longest id, address or name, bytes.
const TEXT_MAX: usize = 512;
/// Most layers of a model.
const LAYERS_MAX: usize = 4096;
/// Largest dimension in a geometry.
const DIM_MAX: u32 = 1 << 20;
/// Most adapters.
const ADAPTERS_MAX: usize = 1024;

/// Why a record is not a member.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("longer than {RECORD_MAX} bytes")]
    TooLong,
    #[error("not a record: {0}")]
    Json(#[from] serde_json::Error),
    #[error("written in format {0}, newer than {FORMAT}")]
    Format(u32),
    #[error("{0} is out of range")]
    Field(&'static str),
}

/// A member and the least epoch that this registration may have: a registry that lost its data begins its
/// revisions anew, epochs must grow all the same.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Record {
    pub(crate) member: Member,
    pub(crate) epoch_min: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    id: String,
    role: String,
    #[serde(default)]
    epoch_min: u64,
    rpc_address: String,
    #[serde(default)]
    kv_address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kv_tcp_address: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kv_shm_path: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    kv_shm_host: String,
    #[serde(default)]
    admin_address: String,
    #[serde(default)]
    http_address: String,
    #[serde(default)]
    model: String,
    #[serde(default)]
    max_context: u32,
    #[serde(default)]
    device: String,
    #[serde(default)]
    draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    compatibility: Option<StoredCompatibility>,
}

#[derive(Serialize, Deserialize)]
struct StoredCompatibility {
    protocol: (u32, u32),
    model_digest: String,
    #[serde(default)]
    model_revision: String,
    geometry: StoredGeometry,
    rope: String,
    attention: String,
    quantization: String,
    #[serde(default)]
    adapters: Vec<String>,
    #[serde(default)]
    drafter: String,
    #[serde(default)]
    numerics: String,
}

#[derive(Serialize, Deserialize)]
struct StoredGeometry {
    block_tokens: u32,
    element: String,
    layers: Vec<StoredLayers>,
}

/// Equal neighbouring layers.
#[derive(Serialize, Deserialize)]
struct StoredLayers {
    count: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(flatten)]
    kind: StoredKind,
}

#[derive(Serialize, Deserialize, Clone, Copy)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum StoredKind {
    Grouped { n_kv_heads: u32, head_dim: u32 },
    Latent { compressed_dim: u32, rope_dim: u32 },
}

impl Record {
    /// As JSON.
    ///
    /// # Errors
    /// If a reader would refuse it.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, RegistryError> {
        let refused = |field, reason: String| RegistryError::Member { field, reason };
        let bytes = serde_json::to_vec(&store(self)).map_err(|e| refused("record", e.to_string()))?;
        match Self::decode(&bytes) {
            Ok(_) => Ok(bytes),
            Err(RecordError::Field(field)) => Err(refused(field, "is empty, too long or out of range".into())),
            Err(error) => Err(refused("record", error.to_string())),
        }
    }

    /// From JSON that anybody may have written.
    ///
    /// # Errors
    /// [`RecordError`]
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_MAX {
            return Err(RecordError::TooLong);
        }
        let stored: Stored = serde_json::from_slice(bytes)?;
        if stored.format > FORMAT {
            return Err(RecordError::Format(stored.format));
        }
        let id_ok = |c: char| c.is_ascii_alphanumeric() || "._:-".contains(c);
        check("id", !stored.id.is_empty() && stored.id.chars().all(id_ok))?;
        check("rpc_address", !stored.rpc_address.is_empty())?;
        check("epoch_min", stored.epoch_min <= i64::MAX as u64)?;
        for (field, text) in [
            ("id", &stored.id),
            ("rpc_address", &stored.rpc_address),
            ("kv_address", &stored.kv_address),
            ("kv_tcp_address", &stored.kv_tcp_address),
            ("kv_shm_path", &stored.kv_shm_path),
            ("kv_shm_host", &stored.kv_shm_host),
            ("admin_address", &stored.admin_address),
            ("http_address", &stored.http_address),
            ("model", &stored.model),
            ("device", &stored.device),
        ] {
            check(field, text.len() <= TEXT_MAX && !text.contains(char::is_control))?;
        }
        let member = Member {
            id: WorkerId::new(stored.id),
            role: stored.role.parse().map_err(|_| RecordError::Field("role"))?,
            rpc_address: stored.rpc_address,
            kv_address: stored.kv_address,
            kv_endpoints: KvEndpoints { tcp: stored.kv_tcp_address, shm: stored.kv_shm_path, host: stored.kv_shm_host },
            admin_address: stored.admin_address,
            http_address: stored.http_address,
            model: stored.model,
            max_context: stored.max_context,
            compatibility: stored.compatibility.map(compatibility).transpose()?,
            device: stored.device,
            draining: stored.draining,
        };
        Ok(Self { member, epoch_min: stored.epoch_min })
    }
}

fn check(field: &'static str, holds: bool) -> Result<(), RecordError> {
    if holds { Ok(()) } else { Err(RecordError::Field(field)) }
}

fn compatibility(stored: StoredCompatibility) -> Result<Compatibility, RecordError> {
    check("protocol", stored.protocol.0 <= stored.protocol.1)?;
    check("model_digest", !stored.model_digest.is_empty())?;
    check("adapters", stored.adapters.len() <= ADAPTERS_MAX)?;
    Ok(Compatibility {
        protocol: stored.protocol,
        model_digest: stored.model_digest,
        model_revision: stored.model_revision,
        geometry: geometry(stored.geometry)?,
        rope: stored.rope,
        attention: stored.attention,
        quantization: stored.quantization,
        adapters: stored.adapters,
        drafter: stored.drafter,
        numerics: stored.numerics,
    })
}

fn geometry(stored: StoredGeometry) -> Result<KvGeometry, RecordError> {
    let sane = |n: u32| (1..=DIM_MAX).contains(&n);
    check("geometry.block_tokens", sane(stored.block_tokens))?;
    let element = match stored.element.as_str() {
        "f32" => KvElement::F32,
        "f16" => KvElement::F16,
        "bf16" => KvElement::Bf16,
        _ => return Err(RecordError::Field("geometry.element")),
    };
    let mut layers = Vec::new();
    for run in stored.layers {
        check("geometry.layers", (1..=LAYERS_MAX - layers.len()).contains(&run.count))?;
        check("geometry.window", run.window.is_none_or(|n| n > 0))?;
        let kind = match run.kind {
            StoredKind::Grouped { n_kv_heads, head_dim } => {
                check("geometry.heads", sane(n_kv_heads) && sane(head_dim))?;
                LayerKvKind::Grouped { n_kv_heads, head_dim }
            }
            StoredKind::Latent { compressed_dim, rope_dim } => {
                check("geometry.dims", sane(compressed_dim) && rope_dim <= DIM_MAX)?;
                LayerKvKind::Latent { compressed_dim, rope_dim }
            }
        };
        layers.extend(std::iter::repeat_n(LayerKv { kind, window: run.window }, run.count));
    }
    Ok(KvGeometry { block_tokens: stored.block_tokens, element, layers })
}

fn store(record: &Record) -> Stored {
    let member = record.member.clone();
    Stored {
        format: FORMAT,
        id: member.id.to_string(),
        role: member.role.to_string(),
        epoch_min: record.epoch_min,
        rpc_address: member.rpc_address,
        kv_address: member.kv_address,
        kv_tcp_address: member.kv_endpoints.tcp,
        kv_shm_path: member.kv_endpoints.shm,
        kv_shm_host: member.kv_endpoints.host,
        admin_address: member.admin_address,
        http_address: member.http_address,
        model: member.model,
        max_context: member.max_context,
        device: member.device,
        draining: member.draining,
        compatibility: member.compatibility.map(store_compatibility),
    }
}

fn store_compatibility(c: Compatibility) -> StoredCompatibility {
    let element = match c.geometry.element {
        KvElement::F32 => "f32",
        KvElement::F16 => "f16",
        KvElement::Bf16 => "bf16",
    };
    let mut layers: Vec<StoredLayers> = Vec::new();
    for run in c.geometry.layers.chunk_by(|a, b| a == b) {
        let kind = match run[0].kind {
            LayerKvKind::Grouped { n_kv_heads, head_dim } => StoredKind::Grouped { n_kv_heads, head_dim },
            LayerKvKind::Latent { compressed_dim, rope_dim } => StoredKind::Latent { compressed_dim, rope_dim },
        };
        layers.push(StoredLayers { count: run.len(), window: run[0].window, kind });
    }
    StoredCompatibility {
        protocol: c.protocol,
        model_digest: c.model_digest,
        model_revision: c.model_revision,
        geometry: StoredGeometry { block_tokens: c.geometry.block_tokens, element: element.into(), layers },
        rope: c.rope,
        attention: c.attention,
        quantization: c.quantization,
        adapters: c.adapters,
        drafter: c.drafter,
        numerics: c.numerics,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use types::Role;

    use super::*;

    pub(crate) fn member(id: &str) -> Member {
        let layer = |window| LayerKv { kind: LayerKvKind::Grouped { n_kv_heads: 3, head_dim: 64 }, window };
        let latent = LayerKv { kind: LayerKvKind::Latent { compressed_dim: 512, rope_dim: 64 }, window: None };
        Member {
            id: WorkerId::new(id),
            role: Role::Decode,
            rpc_address: "127.0.0.1:7001".into(),
            kv_address: "127.0.0.1:7101".into(),
            kv_endpoints: KvEndpoints {
                tcp: "127.0.0.1:7102".into(),
                shm: "/run/baton/kv.sock".into(),
                host: "5e3c".into(),
            },
            admin_address: "127.0.0.1:9090".into(),
            http_address: String::new(),
            model: "a model".into(),
            max_context: 2048,
            compatibility: Some(Compatibility {
                protocol: (1, 1),
                model_digest: "d1".into(),
                model_revision: "main".into(),
                geometry: KvGeometry {
                    block_tokens: 16,
                    element: KvElement::F16,
                    layers: vec![layer(None), layer(None), layer(Some(128)), latent],
                },
                rope: "default".into(),
                attention: "causal".into(),
                quantization: "q4_1".into(),
                adapters: vec!["a".into()],
                drafter: String::new(),
                numerics: "cpu-1/auto".into(),
            }),
            device: "cpu/avx2".into(),
            draining: false,
        }
    }

    fn record() -> Record {
        Record { member: member("decode-0"), epoch_min: 7 }
    }

    #[test]
    fn survives_a_round_trip_and_unknown_fields() {
        let bytes = record().encode().expect("a sound member");
        assert!(bytes.len() < 1024, "{} bytes", bytes.len());
        assert_eq!(Record::decode(&bytes).expect("readable"), record());
        let mut json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        json["zone"] = "z1".into();
        json["compatibility"]["geometry"]["layers"][0]["scales"] = 3.into();
        let newer = serde_json::to_vec(&json).expect("JSON");
        assert_eq!(Record::decode(&newer).expect("readable"), record());
    }

    #[test]
    fn refuses_members_that_no_reader_would_take() {
        let check = |field: &str, change: fn(&mut Member)| {
            let mut record = record();
            change(&mut record.member);
            let message = record.encode().expect_err("refused").to_string();
            assert!(message.contains(field), "{message}");
        };
        check("id", |m| m.id = WorkerId::new(""));
        check("id", |m| m.id = WorkerId::new("a/b"));
        check("id", |m| m.id = WorkerId::new("a".repeat(600)));
        check("rpc_address", |m| m.rpc_address.clear());
        check("model", |m| m.model = "a\nb".into());
        check("kv_tcp_address", |m| m.kv_endpoints.tcp = "a".repeat(TEXT_MAX + 1));
        check("kv_shm_path", |m| m.kv_endpoints.shm = "a\0b".into());
        check("record", |m| m.compatibility.as_mut().expect("some").rope = "r".repeat(RECORD_MAX));
        check("block_tokens", |m| m.compatibility.as_mut().expect("some").geometry.block_tokens = 0);
        let deep = |m: &mut Member| {
            let layers = &mut m.compatibility.as_mut().expect("some").geometry.layers;
            *layers = vec![layers[0]; LAYERS_MAX + 1];
        };
        check("layers", deep);
    }

    #[test]
    fn refuses_garbage() {
        let cases: [&[u8]; 8] = [
            b"",
            b"null",
            b"{}",
            b"\xff\xfe",
            b"[1,2,3]",
            br#"{"format":1,"id":"a","role":"emperor","rpc_address":"x"}"#,
            br#"{"format":2,"id":"a","role":"decode","rpc_address":"x"}"#,
            br#"{"format":1,"id":"a","role":"decode","rpc_address":"x","max_context":-1}"#,
        ];
        for case in cases {
            assert!(Record::decode(case).is_err(), "{}", String::from_utf8_lossy(case));
        }
        let nested = "[".repeat(30_000);
        assert!(Record::decode(nested.as_bytes()).is_err());
        assert!(matches!(Record::decode(&vec![b' '; RECORD_MAX + 1]), Err(RecordError::TooLong)));
        let many = r#"{"format":1,"id":"a","role":"decode","rpc_address":"x","compatibility":{"protocol":[1,1],
            "model_digest":"d","rope":"","attention":"","quantization":"","geometry":{"block_tokens":16,
            "element":"f16","layers":[{"count":18446744073709551615,"kind":"grouped","n_kv_heads":1,"head_dim":1}]}}}"#;
        assert!(matches!(Record::decode(many.as_bytes()), Err(RecordError::Field("geometry.layers"))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// What a damaged record decodes to, if anything, is itself a sound record.
        #[test]
        fn damage_never_panics(edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4u8, any::<u8>()), 1..6)) {
            let mut bytes = record().encode().expect("a sound member");
            for (at, kind, byte) in edits {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes[at] ^= 1 << (byte % 8),
                    2 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, byte),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            if let Ok(decoded) = Record::decode(&bytes) {
                let again = decoded.encode().expect("what was read can be written");
                prop_assert_eq!(Record::decode(&again).expect("and read"), decoded);
            }
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Record::decode(&bytes);
        }
    }
}
