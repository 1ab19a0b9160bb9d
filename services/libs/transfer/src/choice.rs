//! Which transport carries a pull.

use crate::link::TransportKind;
use types::KvEndpoints;

/// What the reader was told to use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TransportChoice {
    /// The fastest that both sides have: shared memory, then TCP, then gRPC (docs/benchmarks/transfer.md).
    #[default]
    Auto,
    /// This one; the next slower, with a warning, where it does not reach.
    Only(TransportKind),
}

impl TransportChoice {
    /// Whether a source is to serve a transport.
    pub fn offers(self, kind: TransportKind) -> bool {
        match self {
            Self::Auto => true,
            Self::Only(only) => kind == only || kind == TransportKind::Grpc,
        }
    }

    /// Transports to try, the best first. gRPC is always there.
    fn order(self) -> &'static [TransportKind] {
        const ORDER: [TransportKind; 3] = [TransportKind::Shm, TransportKind::Tcp, TransportKind::Grpc];
        match self {
            Self::Auto | Self::Only(TransportKind::Shm) => &ORDER,
            Self::Only(TransportKind::Tcp) => &ORDER[1..],
            Self::Only(TransportKind::Grpc) => &ORDER[2..],
        }
    }

    /// What can be tried with a peer, the best first; and if what was asked for is not among it, why.
    pub(crate) fn plan(self, endpoints: &KvEndpoints, host: Option<&str>) -> (Vec<TransportKind>, Option<String>) {
        let lack = |kind| lack(kind, endpoints, host);
        let plan = self.order().iter().copied().filter(|&kind| lack(kind).is_none()).collect();
        let wanted = match self {
            Self::Auto => None,
            Self::Only(kind) => lack(kind).map(str::to_owned),
        };
        (plan, wanted)
    }
}

/// Why a transport cannot be tried.
fn lack(kind: TransportKind, endpoints: &KvEndpoints, host: Option<&str>) -> Option<&'static str> {
    match kind {
        TransportKind::Grpc => None,
        TransportKind::Tcp if endpoints.tcp.is_empty() => Some("the peer does not serve it"),
        TransportKind::Shm if endpoints.shm.is_empty() => Some("the peer does not serve it"),
        TransportKind::Shm if host.is_none_or(|host| host != endpoints.host) => Some("the peer is on another host"),
        TransportKind::Tcp | TransportKind::Shm => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use TransportKind::{Grpc, Shm, Tcp};

    #[test]
    fn the_best_that_both_have_comes_first() {
        let endpoints =
            |tcp: &str, shm: &str, host: &str| KvEndpoints { tcp: tcp.into(), shm: shm.into(), host: host.into() };
        let here = endpoints("a:1", "/run/kv", "boot");
        let check = |choice: TransportChoice, endpoints: &KvEndpoints, want: &[TransportKind], reason: bool| {
            let (plan, why) = choice.plan(endpoints, Some("boot"));
            assert_eq!((&plan[..], why.is_some()), (want, reason), "{choice:?} {endpoints:?}");
        };
        check(TransportChoice::Auto, &here, &[Shm, Tcp, Grpc], false);
        check(TransportChoice::Auto, &endpoints("a:1", "/run/kv", "other"), &[Tcp, Grpc], false);
        check(TransportChoice::Auto, &KvEndpoints::default(), &[Grpc], false);
        check(TransportChoice::Only(Shm), &here, &[Shm, Tcp, Grpc], false);
        check(TransportChoice::Only(Shm), &endpoints("a:1", "/run/kv", "other"), &[Tcp, Grpc], true);
        check(TransportChoice::Only(Tcp), &here, &[Tcp, Grpc], false);
        check(TransportChoice::Only(Tcp), &endpoints("", "/run/kv", "boot"), &[Grpc], true);
        check(TransportChoice::Only(Grpc), &here, &[Grpc], false);
        assert_eq!(TransportChoice::Auto.plan(&here, None).0, [Tcp, Grpc]);
    }
}
