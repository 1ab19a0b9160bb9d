//! `Idempotency-Key`: the same key with the same body is answered by the same work.
//!
//! Whole answers are kept for a while, bounded in number and bytes, so a repeated request gets the first one's
//! answer, or waits for it. A streamed answer is not kept: its key is taken while it runs, and free again after.
//! Failures are not kept either. What is kept dies with this router.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{Code, Failure};

use super::error::ApiError;
use super::generate::json;

const KEY_BYTES: usize = 255;
/// An answer is kept this long.
const KEPT_TIME: Duration = Duration::from_secs(600);
/// Keys known at the same time, running ones included.
const KEYS: usize = 4096;
/// Bytes of all answers kept.
const KEPT_BYTES: usize = 32 << 20;

/// Hash of what a request says.
type Print = [u8; 32];

/// Keys and answers. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Idempotency(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    entries: HashMap<Box<[u8]>, Entry>,
    kept_bytes: usize,
}

struct Entry {
    print: Print,
    state: State,
}

enum State {
    /// `stream`: nobody can wait for it.
    Running {
        done: watch::Receiver<()>,
        stream: bool,
    },
    Answered {
        body: Bytes,
        at: Instant,
    },
}

/// What a key gives.
pub(super) enum Claim {
    /// The answer of an earlier request.
    Answered(Response),
    /// Do the work.
    Yours(Ticket),
}

/// The right to answer for a key; dropped without an answer it frees the key.
pub(super) struct Ticket {
    table: Idempotency,
    key: Box<[u8]>,
    answered: bool,
    _done: watch::Sender<()>,
}

impl Idempotency {
    /// Claims a tenant's `key` for a request whose endpoint and body are `said`; waits while an equal one is being answered.
    ///
    /// # Errors
    /// 422 if the key stands for another body, 409 while an equal request is streamed.
    pub(super) async fn claim(&self, tenant: &str, key: &[u8], said: &[u8], stream: bool) -> Result<Claim, ApiError> {
        let refuse = |status, reason, message: &str| {
            let failure = Failure {
                param: Some("Idempotency-Key".into()),
                ..Failure::new(Code::InvalidArgument, reason, message)
            };
            Err(ApiError::with_status(status, failure))
        };
        if key.is_empty() || key.len() > KEY_BYTES {
            let message = format!("an idempotency key has 1 to {KEY_BYTES} bytes");
            return refuse(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", &message);
        }
        // No tenant's name has a line break.
        let key = &*[tenant.as_bytes(), b"\n", key].concat();
        let print = *blake3::hash(said).as_bytes();
        loop {
            let mut done = {
                let mut table = self.lock();
                match table.entries.get(key) {
                    Some(entry) if entry.is_stale() => table.remove(key),
                    _ => {}
                }
                match table.entries.get(key) {
                    Some(entry) if entry.print != print => {
                        return refuse(
                            StatusCode::UNPROCESSABLE_ENTITY,
                            "IDEMPOTENCY_KEY_REUSED",
                            "this key was used with another body",
                        );
                    }
                    Some(Entry { state: State::Answered { body, .. }, .. }) => {
                        let mut response = json(body.clone());
                        response.headers_mut().insert("idempotent-replayed", HeaderValue::from_static("true"));
                        return Ok(Claim::Answered(response));
                    }
                    Some(Entry { state: State::Running { stream: true, .. }, .. }) => {
                        return refuse(
                            StatusCode::CONFLICT,
                            "IDEMPOTENCY_KEY_IN_USE",
                            "a streamed request with this key is running",
                        );
                    }
                    Some(Entry { state: State::Running { done, .. }, .. }) => done.clone(),
                    None => {
                        table.make_room()?;
                        let (sender, done) = watch::channel(());
                        let state = State::Running { done, stream };
                        table.entries.insert(key.into(), Entry { print, state });
                        let ticket = Ticket { table: self.clone(), key: key.into(), answered: false, _done: sender };
                        return Ok(Claim::Yours(ticket));
                    }
                }
            };
            // Ends when the ticket is dropped: by then there is an answer, or the key is free.
            let _ = done.changed().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Keeps the answer for those who ask again.
    pub(super) fn answered(mut self, body: &Bytes) {
        let mut table = self.table.lock();
        if table.kept_bytes + body.len() > KEPT_BYTES {
            table.drop_answers_until(KEPT_BYTES.saturating_sub(body.len()));
        }
        if body.len() <= KEPT_BYTES
            && let Some(entry) = table.entries.get_mut(&self.key)
        {
            entry.state = State::Answered { body: body.clone(), at: Instant::now() };
            table.kept_bytes += body.len();
            self.answered = true;
        }
        drop(table);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.answered {
            self.table.lock().remove(&self.key);
        }
    }
}

impl Entry {
    fn is_stale(&self) -> bool {
        matches!(self.state, State::Answered { at, .. } if at.elapsed() > KEPT_TIME)
    }
}

impl Table {
    fn remove(&mut self, key: &[u8]) {
        if let Some(Entry { state: State::Answered { body, .. }, .. }) = self.entries.remove(key) {
            self.kept_bytes -= body.len();
        }
    }

    fn make_room(&mut self) -> Result<(), Failure> {
        if self.entries.len() >= KEYS {
            self.drop_answers_until(self.kept_bytes / 2);
        }
        if self.entries.len() >= KEYS {
            let message = "too many idempotency keys are in use";
            return Err(Failure::new(Code::ResourceExhausted, "TOO_MANY_IDEMPOTENCY_KEYS", message));
        }
        Ok(())
    }

    /// Drops the oldest answers until those left have at most so many bytes.
    fn drop_answers_until(&mut self, bytes: usize) {
        let mut answers: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(key, entry)| match entry.state {
                State::Answered { at, .. } => Some((at, key.clone())),
                State::Running { .. } => None,
            })
            .collect();
        answers.sort_by_key(|(at, _)| *at);
        for (_, key) in answers {
            if self.kept_bytes <= bytes {
                break;
            }
            self.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn claim(table: &Idempotency, said: &str, stream: bool) -> Result<Claim, StatusCode> {
        let claim = table.claim("", b"key", said.as_bytes(), stream).await;
        claim.map_err(|error| axum::response::IntoResponse::into_response(error).status())
    }

    #[tokio::test]
    async fn equal_requests_share_one_answer() {
        let table = Idempotency::default();
        let Ok(Claim::Yours(ticket)) = claim(&table, "a", false).await else { panic!("the first does the work") };
        assert_eq!(claim(&table, "b", false).await.err(), Some(StatusCode::UNPROCESSABLE_ENTITY));
        let second = tokio::spawn({
            let table = table.clone();
            async move { matches!(claim(&table, "a", false).await, Ok(Claim::Answered(_))) }
        });
        tokio::task::yield_now().await;
        ticket.answered(&Bytes::from_static(b"{}"));
        assert!(second.await.expect("no panic"), "the second gets the first one's answer");
        assert!(matches!(claim(&table, "a", false).await, Ok(Claim::Answered(_))));
        assert_eq!(claim(&table, "b", false).await.err(), Some(StatusCode::UNPROCESSABLE_ENTITY));
    }

    #[tokio::test]
    async fn who_waits_takes_over_when_the_first_gives_up() {
        let table = Idempotency::default();
        let ticket = claim(&table, "a", false).await.ok();
        let second = tokio::spawn({
            let table = table.clone();
            async move { matches!(claim(&table, "a", false).await, Ok(Claim::Yours(_))) }
        });
        tokio::task::yield_now().await;
        drop(ticket);
        assert!(second.await.expect("no panic"));
    }

    #[tokio::test]
    async fn a_stream_holds_its_key_and_keeps_nothing() {
        let table = Idempotency::default();
        let ticket = claim(&table, "a", true).await.ok();
        assert_eq!(claim(&table, "a", true).await.err(), Some(StatusCode::CONFLICT));
        drop(ticket);
        assert!(matches!(claim(&table, "a", true).await, Ok(Claim::Yours(_))));
    }

    #[tokio::test]
    async fn answers_are_bounded() {
        let table = Idempotency::default();
        let big = Bytes::from(vec![b' '; KEPT_BYTES / 2]);
        for key in 0..4u8 {
            let Ok(Claim::Yours(ticket)) = table.claim("", &[key], b"", false).await else { panic!("a new key") };
            ticket.answered(&big);
        }
        let table = table.lock();
        assert!(table.kept_bytes <= KEPT_BYTES);
        assert_eq!(table.entries.len(), 2);
    }
}
