//! `KvService`, the source's side of the gRPC transport.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use proto::v1 as wire;
use proto::v1::fetch_response::Item;
use rpc::status::to_status;
use rpc::{ServeError, ServeOptions};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use types::{Code, Failure};

use super::codec::{Message, Queued, SourceCodec, no_frames};
use crate::ask::{admit, read_note};
use crate::cells::Batch;
use crate::link::{Ears, Heard, Outlet, ReaderGone, TransportKind};
use crate::produce::produce;
use crate::source::Source;

const SERVICE: &str = "baton.v1.KvService";
const SERVICES: &[&str] = &[SERVICE];
const FETCH: &str = "/baton.v1.KvService/Fetch";
/// Messages that wait for the connection: each has about a MiB.
const MESSAGES_AHEAD: usize = 2;

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
    let server = Server { source: source.clone(), message_bytes: options.limits.message_bytes };
    let result = rpc::net::serve_routes(Routes::new(server), SERVICES, listener, options, shutdown).await;
    // Their readers are gone with the connections.
    source.tasks().close();
    source.tasks().wait().await;
    result
}

/// The service as generated code would have it, with a codec of our own.
#[derive(Clone)]
struct Server {
    source: Arc<Source>,
    message_bytes: usize,
}

impl NamedService for Server {
    const NAME: &'static str = SERVICE;
}

impl Service<http::Request<Body>> for Server {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { source, message_bytes } = self.clone();
        Box::pin(async move {
            if request.uri().path() != FETCH {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let mut grpc =
                Grpc::new(SourceCodec).apply_max_message_size_config(Some(message_bytes), Some(message_bytes));
            Ok(grpc.streaming(Fetch(source), request).await)
        })
    }
}

struct Fetch(Arc<Source>);

type Messages = ReceiverStream<Result<Message, Status>>;
type Answer = Pin<Box<dyn Future<Output = Result<Response<Messages>, Status>> + Send>>;

impl StreamingService<wire::FetchRequest> for Fetch {
    type Response = Message;
    type ResponseStream = Messages;
    type Future = Answer;

    fn call(&mut self, request: Request<Streaming<wire::FetchRequest>>) -> Answer {
        Box::pin(fetch(self.0.clone(), request.into_inner()))
    }
}

async fn fetch(source: Arc<Source>, mut requests: Streaming<wire::FetchRequest>) -> Result<Response<Messages>, Status> {
    let permit = source.permits().clone().try_acquire_owned().map_err(|_| to_status(&too_many()))?;
    let first = requests.message().await?.ok_or_else(|| Status::invalid_argument("nothing was asked"))?;
    let ask = admit(&source, first).map_err(|failure| to_status(&failure))?;
    let (messages, stream) = mpsc::channel(MESSAGES_AHEAD);
    source.clone().tasks().spawn(async move {
        source.metrics().fetches_open().inc();
        let mut ears = GrpcEars { requests, messages: messages.clone() };
        produce(&source, &ask, &mut GrpcOutlet { messages, waiting: Vec::new() }, &mut ears).await;
        source.metrics().fetches_open().dec();
        drop(permit);
    });
    Ok(Response::new(ReceiverStream::new(stream)))
}

/// Of a source that serves as many fetches as it may.
pub(crate) fn too_many() -> Failure {
    Failure::new(Code::ResourceExhausted, "KV_TOO_MANY_FETCHES", "too many fetches at a time")
}

struct GrpcOutlet {
    messages: mpsc::Sender<Result<Message, Status>>,
    /// Batches that the connection may not have taken yet.
    waiting: Vec<Queued>,
}

impl GrpcOutlet {
    async fn send(&self, message: Result<Message, Status>) -> Result<(), ReaderGone> {
        self.messages.send(message).await.map_err(|_| ReaderGone)
    }

    async fn plain(&self, message: wire::FetchResponse) -> Result<(), ReaderGone> {
        self.send(Ok(Message::Plain(Box::new(message)))).await
    }
}

#[async_trait]
impl Outlet for GrpcOutlet {
    fn kind(&self) -> TransportKind {
        TransportKind::Grpc
    }

    async fn cells(&mut self, mut batch: Batch) -> Result<Vec<u64>, ReaderGone> {
        batch.seal();
        let sums = batch.sums();
        let queued = Queued::new(batch);
        self.waiting.retain(Queued::is_waiting);
        self.waiting.push(queued.clone());
        self.send(Ok(Message::Cells(queued))).await?;
        Ok(sums)
    }

    async fn beat(&mut self) -> Result<(), ReaderGone> {
        self.plain(no_frames()).await
    }

    async fn manifest(&mut self, manifest: wire::Manifest) -> Result<(), ReaderGone> {
        self.plain(wire::FetchResponse { item: Some(Item::Manifest(manifest)) }).await
    }

    async fn refuse(&mut self, failure: &Failure) -> Result<(), ReaderGone> {
        // What waits in front of it is not sent any more.
        self.waiting.drain(..).for_each(|queued| queued.revoke());
        self.send(Err(to_status(failure))).await
    }
}

impl Drop for GrpcOutlet {
    /// The fetch is over. What its reader has not taken by now, it will not get: the blocks are given back.
    fn drop(&mut self) {
        self.waiting.drain(..).for_each(|queued| queued.revoke());
    }
}

struct GrpcEars {
    requests: Streaming<wire::FetchRequest>,
    /// Closed when the connection takes no more of the answer.
    messages: mpsc::Sender<Result<Message, Status>>,
}

#[async_trait]
impl Ears for GrpcEars {
    async fn hear(&mut self) -> Heard {
        tokio::select! {
            // A last word counts even if the reader closed right after it.
            biased;
            request = self.requests.message() => match request {
                Ok(Some(request)) => read_note(request.note),
                Ok(None) | Err(_) => Heard::Left,
            },
            () = self.messages.closed() => Heard::Left,
        }
    }
}
