//! `KvService`: who asks, and whether they may.

use std::sync::Arc;

use proto::v1 as wire;
use proto::v1::kv_service_server::{KvService, KvServiceServer};
use rpc::convert::{read_compatibility, read_context, read_hash, read_worker_ref};
use rpc::status::to_status;
use rpc::{ServeError, ServeOptions, reason};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use types::{Code, Failure, Fault, Retry};

use crate::frame::{CellId, Checksum};
use crate::produce::{Ask, produce};
use crate::source::Source;

const SERVICES: &[&str] = &["baton.v1.KvService"];
/// Messages that wait for the connection: each has about a MiB.
const MESSAGES_AHEAD: usize = 2;
/// Most cells of one repair.
pub(crate) const ONLY_MAX: usize = 1 << 16;

/// Serves `source` until `shutdown`. For `options`, begin with [`rpc::Limits::kv`].
///
/// # Errors
/// The transport broke.
pub async fn serve(
    listener: TcpListener,
    source: Arc<Source>,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let bytes = options.limits.message_bytes;
    let service =
        KvServiceServer::new(Server(source.clone())).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let result = rpc::net::serve_routes(Routes::new(service), SERVICES, listener, options, shutdown).await;
    // Their readers are gone with the connections.
    source.tasks().close();
    source.tasks().wait().await;
    result
}

struct Server(Arc<Source>);

#[tonic::async_trait]
impl KvService for Server {
    type FetchStream = ReceiverStream<Result<wire::FetchResponse, Status>>;

    async fn fetch(&self, request: Request<wire::FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let source = &self.0;
        let ask = read_ask(request.into_inner()).and_then(|ask| admit(source, ask)).map_err(|f| to_status(&f))?;
        let permit = source.permits().clone().try_acquire_owned().map_err(|_| {
            to_status(&Failure::new(Code::ResourceExhausted, "KV_TOO_MANY_FETCHES", "too many fetches at a time"))
        })?;
        let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
        let source = source.clone();
        self.0.tasks().spawn(async move {
            source.metrics().fetches_open().inc();
            produce(&source, ask, messages).await;
            source.metrics().fetches_open().dec();
            drop(permit);
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Refuses who does not fit; the offer itself is looked at when it is there.
fn admit(source: &Source, (ask, compatibility): (Ask, types::Compatibility)) -> Result<Ask, Failure> {
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

fn read_ask(request: wire::FetchRequest) -> Result<(Ask, types::Compatibility), Failure> {
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
