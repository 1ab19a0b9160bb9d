//! The compatibility document.

use proto::v1 as wire;
use types::{Compatibility, Failure, KvElement, KvGeometry, LayerKv, LayerKvKind};

use super::{LIST_MAX, bounded, name, required};

const BLOCK_TOKENS_MAX: u32 = 1024;
const HEADS_MAX: u32 = 1 << 12;
const DIM_MAX: u32 = 1 << 16;

/// A peer's document.
///
/// # Errors
/// A size is missing, zero or beyond what any model has: no later product of them overflows.
pub fn read_compatibility(document: Option<wire::Compatibility>, param: &str) -> Result<Compatibility, Failure> {
    let document = required(document, param)?;
    Ok(Compatibility {
        protocol: (document.protocol_min, document.protocol_max),
        model_digest: name(document.model_digest, "model_digest")?,
        model_revision: name(document.model_revision, "model_revision")?,
        geometry: read_geometry(document.geometry)?,
        rope: name(document.rope, "rope")?,
        attention: name(document.attention, "attention")?,
        quantization: name(document.quantization, "quantization")?,
        adapters: bounded(document.adapters, LIST_MAX, "adapters")?,
        drafter: name(document.drafter, "drafter")?,
        numerics: name(document.numerics, "numerics")?,
    })
}

/// To the wire.
pub fn write_compatibility(document: &Compatibility) -> wire::Compatibility {
    wire::Compatibility {
        protocol_min: document.protocol.0,
        protocol_max: document.protocol.1,
        model_digest: document.model_digest.clone(),
        model_revision: document.model_revision.clone(),
        geometry: Some(write_geometry(&document.geometry)),
        rope: document.rope.clone(),
        attention: document.attention.clone(),
        quantization: document.quantization.clone(),
        adapters: document.adapters.clone(),
        drafter: document.drafter.clone(),
        numerics: document.numerics.clone(),
    }
}

fn read_geometry(geometry: Option<wire::KvGeometry>) -> Result<KvGeometry, Failure> {
    let geometry = required(geometry, "geometry")?;
    let element = match geometry.element() {
        wire::KvElement::F32 => KvElement::F32,
        wire::KvElement::F16 => KvElement::F16,
        wire::KvElement::Bf16 => KvElement::Bf16,
        wire::KvElement::Unspecified => {
            return Err(Failure::invalid("geometry.element", "element type is not known"));
        }
    };
    Ok(KvGeometry {
        block_tokens: size(geometry.block_tokens, BLOCK_TOKENS_MAX, "geometry.block_tokens")?,
        element,
        layers: bounded(geometry.layers, LIST_MAX, "geometry.layers")?
            .into_iter()
            .map(read_layer)
            .collect::<Result<_, _>>()?,
    })
}

fn read_layer(layer: wire::LayerGeometry) -> Result<LayerKv, Failure> {
    use wire::layer_geometry::Kind;
    let kind = match required(layer.kind, "geometry.layers.kind")? {
        Kind::Grouped(heads) => LayerKvKind::Grouped {
            n_kv_heads: size(heads.n_kv_heads, HEADS_MAX, "geometry.layers.n_kv_heads")?,
            head_dim: size(heads.head_dim, DIM_MAX, "geometry.layers.head_dim")?,
        },
        Kind::Latent(heads) => LayerKvKind::Latent {
            compressed_dim: size(heads.compressed_dim, DIM_MAX, "geometry.layers.compressed_dim")?,
            rope_dim: size(heads.rope_dim, DIM_MAX, "geometry.layers.rope_dim")?,
        },
    };
    Ok(LayerKv { kind, window: (layer.window > 0).then_some(layer.window) })
}

fn size(value: u32, max: u32, param: &str) -> Result<u32, Failure> {
    if value == 0 || value > max {
        return Err(Failure::invalid(param, format!("{param} must be between 1 and {max}")));
    }
    Ok(value)
}

fn write_geometry(geometry: &KvGeometry) -> wire::KvGeometry {
    use wire::layer_geometry::Kind;
    let layer = |layer: &LayerKv| wire::LayerGeometry {
        kind: Some(match layer.kind {
            LayerKvKind::Grouped { n_kv_heads, head_dim } => Kind::Grouped(wire::GroupedHeads { n_kv_heads, head_dim }),
            LayerKvKind::Latent { compressed_dim, rope_dim } => {
                Kind::Latent(wire::LatentHeads { compressed_dim, rope_dim })
            }
        }),
        window: layer.window.unwrap_or(0),
    };
    wire::KvGeometry {
        block_tokens: geometry.block_tokens,
        element: match geometry.element {
            KvElement::F32 => wire::KvElement::F32,
            KvElement::F16 => wire::KvElement::F16,
            KvElement::Bf16 => wire::KvElement::Bf16,
        }
        .into(),
        layers: geometry.layers.iter().map(layer).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Compatibility {
        let grouped = LayerKvKind::Grouped { n_kv_heads: 3, head_dim: 64 };
        let latent = LayerKvKind::Latent { compressed_dim: 512, rope_dim: 64 };
        Compatibility {
            protocol: (1, 2),
            model_digest: "d".into(),
            model_revision: "r".into(),
            geometry: KvGeometry {
                block_tokens: 16,
                element: KvElement::Bf16,
                layers: vec![LayerKv { kind: grouped, window: Some(7) }, LayerKv { kind: latent, window: None }],
            },
            rope: "a".into(),
            attention: "b".into(),
            quantization: "c".into(),
            adapters: vec!["x".into()],
            drafter: "e".into(),
            numerics: "f".into(),
        }
    }

    #[test]
    fn survives_the_wire() {
        assert_eq!(read_compatibility(Some(write_compatibility(&document())), "c"), Ok(document()));
    }

    #[test]
    fn refuses_impossible_shapes() {
        type Change = fn(&mut wire::KvGeometry);
        let cases: [(&str, Change); 6] = [
            ("geometry.element", |g| g.element = 99),
            ("geometry.block_tokens", |g| g.block_tokens = 0),
            ("geometry.block_tokens", |g| g.block_tokens = u32::MAX),
            ("geometry.layers", |g| g.layers = vec![g.layers[0]; LIST_MAX + 1]),
            ("geometry.layers.kind", |g| g.layers[0].kind = None),
            ("geometry.layers.head_dim", |g| {
                g.layers[0].kind =
                    Some(wire::layer_geometry::Kind::Grouped(wire::GroupedHeads { n_kv_heads: 1, head_dim: 1 << 30 }));
            }),
        ];
        for (param, change) in cases {
            let mut wire = write_compatibility(&document());
            change(wire.geometry.as_mut().unwrap());
            assert_eq!(read_compatibility(Some(wire), "c").unwrap_err().param.as_deref(), Some(param));
        }
        assert!(read_compatibility(None, "c").is_err());
    }
}
