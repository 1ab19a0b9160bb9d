//! What has been sent to the client of one choice, so that each position is sent once and another worker can go on.

use types::{Token, TokenId};

/// Token ids of a choice, by position.
#[derive(Clone, Debug, Default)]
pub(super) struct Journal {
    ids: Vec<TokenId>,
}

/// Where an arriving token belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// It is the next one.
    Next,
    /// It has been sent before.
    Seen,
    /// Its position has been sent with another id: the workers disagree.
    Diverged,
    /// Tokens before it are missing.
    Gap,
}

impl Journal {
    /// Where `token` belongs.
    pub(super) fn place(&self, token: &Token) -> Place {
        let position = token.position as usize;
        match self.ids.get(position) {
            Some(&id) if id == token.id => Place::Seen,
            Some(_) => Place::Diverged,
            None if position == self.ids.len() => Place::Next,
            None => Place::Gap,
        }
    }

    /// Adds the next token.
    pub(super) fn push(&mut self, token: &Token) {
        assert_eq!(self.place(token), Place::Next, "only the next token is sent");
        self.ids.push(token.id);
    }

    /// Tokens sent.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether nothing has been sent.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// All ids sent.
    pub(super) fn ids(&self) -> &[TokenId] {
        &self.ids
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(position: u32, id: TokenId) -> Token {
        Token { id, position, logprob: None, top: Vec::new(), finish: None }
    }

    #[test]
    fn each_position_is_next_once() {
        let mut journal = Journal::default();
        for (position, id) in [(0, 7), (1, 8), (2, 7)] {
            assert_eq!(journal.place(&token(position + 1, id)), Place::Gap);
            assert_eq!(journal.place(&token(position, id)), Place::Next);
            journal.push(&token(position, id));
            assert_eq!(journal.place(&token(position, id)), Place::Seen);
            assert_eq!(journal.place(&token(position, id + 1)), Place::Diverged);
        }
        assert_eq!(journal.ids(), [7, 8, 7]);
        assert_eq!(journal.len(), 3);
    }
}
