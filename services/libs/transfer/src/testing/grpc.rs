//! The man in the middle of a gRPC transport.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt as _;
use proto::v1 as wire;
use proto::v1::kv_service_client::KvServiceClient;
use proto::v1::kv_service_server::{KvService, KvServiceServer};
use rpc::net::{Limits, channel};
use rpc::{ServeError, ServeOptions};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use super::{Damage, Fault, Plan};

/// Forwards to `upstream` (`host:port`) until `shutdown`. `seed` decides which bits and frames are hit.
///
/// # Errors
/// The transport broke.
pub async fn corrupting_proxy(
    listener: TcpListener,
    upstream: String,
    plan: Plan,
    seed: u64,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let limits = Limits::kv();
    let bytes = limits.message_bytes;
    let channel = channel(&upstream, &limits)
        .map_err(|failure| std::io::Error::new(std::io::ErrorKind::InvalidInput, failure.to_string()))?;
    let upstream = KvServiceClient::new(channel).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let proxy = Proxy { upstream, plan, seed, n_fetches: AtomicU64::new(0) };
    let service = KvServiceServer::new(proxy).max_decoding_message_size(bytes).max_encoding_message_size(bytes);
    let options = ServeOptions::new(limits);
    rpc::net::serve_routes(Routes::new(service), &["baton.v1.KvService"], listener, options, shutdown).await
}

struct Proxy {
    upstream: KvServiceClient<Channel>,
    plan: Plan,
    seed: u64,
    n_fetches: AtomicU64,
}

type Messages = futures::stream::BoxStream<'static, Result<wire::FetchResponse, Status>>;

#[tonic::async_trait]
impl KvService for Proxy {
    type FetchStream = Messages;

    async fn fetch(&self, request: Request<Streaming<wire::FetchRequest>>) -> Result<Response<Messages>, Status> {
        let n = self.n_fetches.fetch_add(1, Ordering::Relaxed);
        let damage = Damage::new(&self.plan, self.seed, n);
        // A reader that breaks off ends the requests here too.
        let requests = request.into_inner().take_while(|request| std::future::ready(request.is_ok()));
        let requests = requests.filter_map(|request| std::future::ready(request.ok()));
        let stream = self.upstream.clone().fetch(requests).await?.into_inner();
        let state = Some((stream, damage, VecDeque::new()));
        let messages = futures::stream::unfold(state, forward);
        Ok(Response::new(Box::pin(messages)))
    }
}

type Forward = (Streaming<wire::FetchResponse>, Damage, VecDeque<wire::FetchResponse>);

async fn forward(state: Option<Forward>) -> Option<(Result<wire::FetchResponse, Status>, Option<Forward>)> {
    let (mut stream, mut damage, mut ready) = state?;
    loop {
        if let Some(message) = ready.pop_front() {
            return Some((Ok(message), Some((stream, damage, ready))));
        }
        match stream.message().await {
            Ok(Some(message)) => match damage.apply(message) {
                Some(message) => ready.push_back(message),
                None if damage.fault == Some(Fault::Disconnect) => {
                    return Some((Err(Status::unknown("connection closed")), None));
                }
                None => return None,
            },
            Ok(None) => return None,
            Err(status) => return Some((Err(status), None)),
        }
    }
}
