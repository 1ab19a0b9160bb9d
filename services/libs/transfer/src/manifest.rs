//! The closing record of a fetch: what was sent, and the handoff.

use proto::v1 as wire;
use rpc::convert::{read_handoff, write_handoff, write_request_id};
use types::Handoff;
use xxhash_rust::xxh3::Xxh3;

use crate::frame::{Checksum, Expected};

/// What a manifest says beyond what both sides know.
pub(crate) struct Closing<'a> {
    /// Checksums of the cells of this fetch, in (block, layer) order.
    pub(crate) checksums: &'a [u64],
    /// Their payload bytes.
    pub(crate) payload_bytes: u64,
}

/// The manifest of a fetch.
pub(crate) fn write_manifest(expected: &Expected<'_>, closing: &Closing<'_>, handoff: &Handoff) -> wire::Manifest {
    let mut manifest = wire::Manifest {
        request_id: Some(write_request_id(expected.request)),
        owner_epoch: expected.owner_epoch.0,
        worker_epoch: expected.worker_epoch.0,
        n_tokens: expected.n_tokens as u32, // prompts are bounded far below
        n_layers: expected.cell_bytes.len() as u32,
        block_hashes: expected.hashes.iter().map(|hash| hash.0.to_vec().into()).collect(),
        payload_bytes: closing.payload_bytes,
        digest: 0,
        handoff: Some(write_handoff(handoff)),
    };
    if expected.checksum == Checksum::On {
        manifest.digest = digest(closing.checksums, &manifest);
    }
    manifest
}

/// The handoff, if the manifest agrees with what was expected and received in every point.
///
/// # Errors
/// What does not agree.
pub(crate) fn read_manifest(
    manifest: wire::Manifest,
    expected: &Expected<'_>,
    closing: &Closing<'_>,
    choice: u32,
) -> Result<Handoff, &'static str> {
    let check = |field, holds: bool| if holds { Ok(()) } else { Err(field) };
    if expected.checksum == Checksum::On {
        check("digest", manifest.digest == digest(closing.checksums, &manifest))?;
    }
    let request = manifest.request_id.as_ref().map(|id| &id.value[..]);
    check("request", request == Some(&expected.request.0.to_be_bytes()))?;
    check("owner epoch", manifest.owner_epoch == expected.owner_epoch.0)?;
    check("worker epoch", manifest.worker_epoch == expected.worker_epoch.0)?;
    check("token count", manifest.n_tokens as usize == expected.n_tokens)?;
    check("layer count", manifest.n_layers as usize == expected.cell_bytes.len())?;
    check("block hashes", manifest.block_hashes.iter().map(|h| &h[..]).eq(expected.hashes.iter().map(|h| &h.0[..])))?;
    check("payload bytes", manifest.payload_bytes == closing.payload_bytes)?;
    let handoff = read_handoff(manifest.handoff).map_err(|_| "handoff")?;
    check("handoff choice", handoff.choice == choice)?;
    check("handoff position", handoff.position as usize == expected.n_tokens)?;
    Ok(handoff)
}

/// xxh3-64 over the checksums of the cells in (block, layer) order, little endian, then over the manifest itself:
/// the handoff is not covered by any frame.
///
/// Canonical manifest: `batonmf1`, request, owner epoch u64, worker epoch u64, token count u32, layer count u32,
/// the hashes (each and all behind their number u64), payload bytes u64, then of the handoff choice u32, position
/// u32, seed u64, hidden state and generated ids behind their lengths u64, and the first token: id, position, finish
/// reason, the logprob's bits behind a presence byte, the alternatives behind their number. All little endian.
fn digest(checksums: &[u64], manifest: &wire::Manifest) -> u64 {
    let mut bytes = Canonical(Vec::with_capacity(256));
    bytes.0.extend_from_slice(b"batonmf1");
    bytes.put(manifest.request_id.as_ref().map_or(&[], |id| &id.value[..]));
    bytes.u64(manifest.owner_epoch);
    bytes.u64(manifest.worker_epoch);
    bytes.u32(manifest.n_tokens);
    bytes.u32(manifest.n_layers);
    bytes.u64(manifest.block_hashes.len() as u64);
    for hash in &manifest.block_hashes {
        bytes.put(hash);
    }
    bytes.u64(manifest.payload_bytes);
    if let Some(handoff) = &manifest.handoff {
        bytes.handoff(handoff);
    }
    let mut hasher = Xxh3::new();
    for checksum in checksums {
        hasher.update(&checksum.to_le_bytes());
    }
    hasher.update(&bytes.0);
    hasher.digest()
}

struct Canonical(Vec<u8>);

impl Canonical {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        self.u64(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn handoff(&mut self, handoff: &wire::Handoff) {
        self.u32(handoff.choice);
        self.u32(handoff.position);
        self.u64(handoff.seed);
        self.put(&handoff.hidden_state);
        self.u64(handoff.generated.len() as u64);
        for &id in &handoff.generated {
            self.u32(id);
        }
        let Some(first) = &handoff.first_token else { return };
        self.u32(first.token_id);
        self.u32(first.position);
        self.u32(first.finish_reason.cast_unsigned());
        self.0.push(first.logprob.is_some().into());
        self.u32(first.logprob.unwrap_or(0.0).to_bits());
        self.u64(first.top_logprobs.len() as u64);
        for top in &first.top_logprobs {
            self.u32(top.token_id);
            self.u32(top.logprob.to_bits());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use types::{BlockHash, Epoch, FinishReason, RequestId, Token, TopLogprob};

    use super::*;

    const EXPECTED: Expected<'static> = Expected {
        request: RequestId(7),
        owner_epoch: Epoch(3),
        worker_epoch: Epoch(4),
        n_tokens: 9,
        block_tokens: 16,
        cell_bytes: &[32, 64],
        hashes: &[BlockHash([1; 16])],
        checksum: Checksum::On,
    };
    const CLOSING: Closing<'static> = Closing { checksums: &[11, 12], payload_bytes: 96 };

    fn handoff() -> Handoff {
        Handoff {
            first: Token {
                id: 5,
                position: 0,
                logprob: Some(-0.5),
                top: vec![TopLogprob { token: 5, logprob: -0.5 }],
                finish: Some(FinishReason::Stop),
            },
            position: 9,
            choice: 2,
            seed: 42,
            hidden_state: vec![1, 2, 3],
            generated: vec![5],
        }
    }

    #[test]
    fn gives_back_the_handoff() {
        let manifest = write_manifest(&EXPECTED, &CLOSING, &handoff());
        assert_eq!(read_manifest(manifest, &EXPECTED, &CLOSING, 2), Ok(handoff()));
    }

    #[test]
    fn refuses_what_does_not_agree() {
        let manifest = || write_manifest(&EXPECTED, &CLOSING, &handoff());
        let other = Closing { checksums: &[12, 11], payload_bytes: 96 };
        assert_eq!(read_manifest(manifest(), &EXPECTED, &other, 2), Err("digest"));
        let fewer = Closing { checksums: &[11], payload_bytes: 32 };
        assert_eq!(read_manifest(manifest(), &EXPECTED, &fewer, 2), Err("digest"));
        assert_eq!(read_manifest(manifest(), &EXPECTED, &CLOSING, 1), Err("handoff choice"));
        let longer = Expected { n_tokens: 10, ..EXPECTED };
        assert_eq!(read_manifest(manifest(), &longer, &CLOSING, 2), Err("token count"));
        let off = Expected { checksum: Checksum::Off, ..EXPECTED };
        let short = Closing { checksums: &[], payload_bytes: 95 };
        assert_eq!(read_manifest(manifest(), &off, &short, 2), Err("payload bytes"));
    }

    proptest! {
        #[test]
        fn every_flipped_bit_is_caught(at in any::<prop::sample::Index>(), bit in 0..8) {
            let good = write_manifest(&EXPECTED, &CLOSING, &handoff());
            let mut bytes = good.encode_to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            if let Ok(manifest) = wire::Manifest::decode(&bytes[..])
                && manifest != good
            {
                prop_assert!(read_manifest(manifest, &EXPECTED, &CLOSING, 2).is_err());
            }
        }
    }
}
