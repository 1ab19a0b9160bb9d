//! What a reader says while it fetches: that it is alive, by a task of its own, and one last word.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use proto::v1 as wire;
use proto::v1::fetch_note::Kind;

use crate::link::LastWord;

/// A reader says this often that it is alive, however slow its engine's steps are.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// The last word and its echo may take this long; then the connection is closed without.
pub(crate) const END_TIME: Duration = Duration::from_secs(2);

/// `words`, with a `beat` whenever there was none for `every`; ends with them.
pub(crate) fn with_beats<T: Clone>(words: impl Stream<Item = T>, beat: T, every: Duration) -> impl Stream<Item = T> {
    let words = Box::pin(words);
    futures::stream::unfold((words, beat), move |(mut words, beat)| async move {
        match tokio::time::timeout(every, words.next()).await {
            Ok(Some(word)) => Some((word, (words, beat))),
            Ok(None) => None,
            Err(_) => Some((beat.clone(), (words, beat))),
        }
    })
}

pub(crate) fn write_last(word: LastWord) -> wire::FetchNote {
    match word {
        LastWord::Sealed => wire::FetchNote { kind: Kind::Sealed.into(), reason: String::new() },
        LastWord::Failed(reason) => wire::FetchNote { kind: Kind::Failed.into(), reason },
    }
}
