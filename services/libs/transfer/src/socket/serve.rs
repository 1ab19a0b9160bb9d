//! The source's side of a socket: one fetch after the other, until one does not end clean.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proto::v1 as wire;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use types::Failure;

use super::record::{Kind, RecordFault};
use super::stream::{Record, read_record};
use crate::ask::{admit, read_note};
use crate::grpc::too_many;
use crate::link::{Ears, Heard, Outlet, ReaderGone};
use crate::notes::END_TIME;
use crate::produce::{Connection, produce};
use crate::source::Source;

/// A reader that keeps a connection asks again within this time, or connects anew.
const IDLE_TIME: Duration = Duration::from_secs(60);
/// Connections at a time, each transport.
const CONNECTIONS_MAX: usize = 1024;
/// Pause after a failed accept (out of file descriptors, most likely).
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// An outlet on a socket.
#[async_trait]
pub(super) trait SocketOutlet: Outlet {
    /// Says that the last word was heard.
    async fn ended(&mut self) -> Result<(), ReaderGone>;
}

/// Accepts connections and serves each by a task of `source`, until `shutdown`; then gives fetches `grace` to end.
pub(super) async fn serve_all<S, A, F>(
    source: &Arc<Source>,
    grace: Duration,
    shutdown: CancellationToken,
    mut accept: impl FnMut() -> A,
    serve_one: impl Fn(Arc<Source>, S) -> F,
) where
    A: Future<Output = io::Result<S>>,
    F: Future<Output = ()> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let cut = CancellationToken::new();
    // Whatever ends this future also ends its connections.
    let cut_on_drop = cut.clone().drop_guard();
    let accepting = async {
        loop {
            // Never closed.
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            match accept().await {
                Ok(socket) => {
                    let (serving, cut) = (serve_one(source.clone(), socket), cut.clone());
                    source.tasks().spawn(async move {
                        cut.run_until_cancelled(serving).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection for kv");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    };
    shutdown.run_until_cancelled(accepting).await;
    let idle = async {
        while permits.available_permits() < CONNECTIONS_MAX {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = timeout(grace, idle).await;
    drop(cut_on_drop);
}

/// Serves fetches over one connection. Returning closes it.
pub(super) async fn serve_connection<R: AsyncRead + Unpin + Send>(
    source: &Arc<Source>,
    reader: R,
    outlet: &mut impl SocketOutlet,
    taken: watch::Sender<u64>,
) {
    let mut ears = SocketEars { reader, taken };
    loop {
        let ask = match timeout(IDLE_TIME, read_record(&mut ears.reader)).await {
            Ok(Ok(Some(record))) => read_ask(&record),
            Ok(Ok(None)) | Err(_) => return,
            Ok(Err(error)) => {
                tracing::debug!(%error, "connection for kv given up");
                return;
            }
        };
        match serve_fetch(source, ask, outlet, &mut ears).await {
            Connection::Clean if outlet.ended().await.is_ok() => {}
            Connection::Clean | Connection::Close => return,
            Connection::Refused => {
                // Closing with notes unread would throw away what the reader has yet to read.
                let mut unread = [0; 1024];
                let drained = async { while matches!(ears.reader.read(&mut unread).await, Ok(1..)) {} };
                let _ = timeout(END_TIME, drained).await;
                return;
            }
        }
    }
}

async fn serve_fetch<R: AsyncRead + Unpin + Send>(
    source: &Arc<Source>,
    ask: Result<wire::FetchRequest, Failure>,
    outlet: &mut impl SocketOutlet,
    ears: &mut SocketEars<R>,
) -> Connection {
    let permit = source.permits().clone().try_acquire_owned().map_err(|_| too_many());
    let admitted = permit.and_then(|permit| Ok((permit, admit(source, ask?)?)));
    match admitted {
        Ok((_permit, ask)) => {
            source.metrics().fetches_open().inc();
            let connection = produce(source, &ask, outlet, ears).await;
            source.metrics().fetches_open().dec();
            connection
        }
        Err(failure) => {
            let _ = timeout(source.config().progress_timeout, outlet.refuse(&failure)).await;
            Connection::Refused
        }
    }
}

fn read_ask(record: &Record) -> Result<wire::FetchRequest, Failure> {
    let malformed = |fault: RecordFault| Failure::invalid("ask", fault.to_string());
    match record.prelude.kind {
        Kind::Ask => record.decode().map_err(malformed),
        _ => Err(malformed(RecordFault("something else than an ask"))),
    }
}

struct SocketEars<R> {
    reader: R,
    /// Position up to which shared memory may be written again.
    taken: watch::Sender<u64>,
}

#[async_trait]
impl<R: AsyncRead + Unpin + Send> Ears for SocketEars<R> {
    async fn hear(&mut self) -> Heard {
        loop {
            let record = match read_record(&mut self.reader).await {
                Ok(Some(record)) => record,
                Ok(None) | Err(_) => return Heard::Left,
            };
            match record.prelude.kind {
                Kind::Taken => drop(self.taken.send_replace(record.prelude.extent)),
                Kind::Note => match record.decode() {
                    Ok(note) => return read_note(Some(note)),
                    Err(_) => return Heard::Left,
                },
                _ => return Heard::Left,
            }
        }
    }
}
