//! A reader's request, from either side.

use proto::v1 as wire;
use rpc::convert::{
    read_compatibility, read_context, read_hash, read_worker_ref, write_compatibility, write_context, write_worker_ref,
};
use rpc::{RequestContext, reason};
use tokio::time::Instant;
use types::{Code, Compatibility, Failure, Fault, Retry};

use crate::frame::{CellId, Checksum};
use crate::link::Heard;
use crate::produce::Ask;
use crate::pull::Pull;
use crate::source::Source;

/// Most cells of one repair.
pub(crate) const ONLY_MAX: usize = 1 << 16;

/// What asks for everything, or for the cells in `only`.
pub(crate) fn write_ask(pull: &Pull, only: &[CellId]) -> wire::FetchRequest {
    let context = RequestContext {
        request: pull.request,
        worker: pull.peer.clone(),
        owner_epoch: pull.owner_epoch,
        deadline: pull.deadline.saturating_duration_since(Instant::now()),
        trace: pull.trace.clone(),
        choice: pull.choice,
    };
    wire::FetchRequest {
        context: Some(write_context(&context)),
        reader: Some(write_worker_ref(&pull.reader)),
        compatibility: Some(write_compatibility(&pull.compatibility)),
        only: only.iter().map(|cell| wire::CellRef { layer: cell.layer, block_index: cell.block }).collect(),
        expected_block_hashes: pull.hashes.iter().map(|hash| hash.0.to_vec().into()).collect(),
        checksum: match pull.checksum {
            Checksum::On => wire::ChecksumKind::Xxh364,
            Checksum::Off => wire::ChecksumKind::None,
        }
        .into(),
        note: None,
        // Bounded by the prompt.
        n_blocks_here: pull.n_blocks_here as u32,
    }
}

/// The request, if this source serves who asks; the offer itself is looked at when it is there.
///
/// # Errors
/// What is malformed or does not fit, to be told to the reader.
pub(crate) fn admit(source: &Source, request: wire::FetchRequest) -> Result<Ask, Failure> {
    let (ask, compatibility) = read_ask(request)?;
    let here = source.worker();
    if ask.worker.id != here.id {
        let message = format!("this is {here}, not {}", ask.worker);
        return Err(Failure::new(Code::FailedPrecondition, reason::STALE_EPOCH, message).with_retry(Retry::Safe(None)));
    }
    let mismatches = source.compatibility().mismatches(&compatibility);
    if !mismatches.is_empty() {
        let fields: Vec<_> =
            mismatches.iter().map(|m| format!("{}: {:?} here, {:?} there", m.field, m.ours, m.theirs)).collect();
        let failure = Failure::new(Code::FailedPrecondition, reason::INCOMPATIBLE, fields.join("; "));
        return Err(Failure { param: Some(mismatches[0].field.to_owned()), ..failure }.with_fault(Fault::Client));
    }
    Ok(ask)
}

fn read_ask(request: wire::FetchRequest) -> Result<(Ask, Compatibility), Failure> {
    let checksum = match request.checksum() {
        wire::ChecksumKind::None => Checksum::Off,
        wire::ChecksumKind::Xxh364 => Checksum::On,
        wire::ChecksumKind::Unspecified => {
            return Err(Failure::invalid("checksum", "checksum kind is not known"));
        }
    };
    let context = read_context(request.context)?;
    let reader = read_worker_ref(request.reader, "reader")?;
    let compatibility = read_compatibility(request.compatibility, "compatibility")?;
    if request.only.len() > ONLY_MAX {
        return Err(Failure::invalid("only", format!("only must have at most {ONLY_MAX} entries")));
    }
    let mut only: Vec<_> =
        request.only.iter().map(|cell| CellId { block: cell.block_index, layer: cell.layer }).collect();
    only.sort_unstable();
    only.dedup();
    let hashes = request
        .expected_block_hashes
        .iter()
        .map(|hash| read_hash(hash, "expected_block_hashes"))
        .collect::<Result<_, _>>()?;
    let ask = Ask {
        request: context.request,
        choice: context.choice,
        worker: context.worker,
        owner_epoch: context.owner_epoch,
        deadline: Instant::now() + context.deadline,
        reader,
        only,
        hashes,
        checksum,
        n_blocks_here: request.n_blocks_here,
    };
    Ok((ask, compatibility))
}

/// What a note says; one that is not known says nothing.
pub(crate) fn read_note(note: Option<wire::FetchNote>) -> Heard {
    match note.as_ref().map(wire::FetchNote::kind) {
        Some(wire::fetch_note::Kind::Sealed) => Heard::Sealed,
        Some(wire::fetch_note::Kind::Failed) => {
            let reason: String =
                note.unwrap_or_default().reason.chars().filter(|c| !c.is_control()).take(256).collect();
            Heard::Failed(reason)
        }
        Some(wire::fetch_note::Kind::Holding | wire::fetch_note::Kind::Unspecified) | None => Heard::Holding,
    }
}
