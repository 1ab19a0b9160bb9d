//! Metrics of the data plane: every name of this crate stands here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::link::TransportKind;

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Flow {
    direction: &'static str,
    transport: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct Step {
    from: &'static str,
    to: &'static str,
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Sent,
    Received,
}

/// Counts of one process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    bytes: Family<Flow, Counter>,
    cells: Family<Flow, Counter>,
    rejected: Family<Reason, Counter>,
    refetched: Counter,
    pulls: Family<Outcome, Counter>,
    steps_down: Family<Step, Counter>,
    offers: Family<Outcome, Counter>,
    downgrades: Family<Reason, Counter>,
    fetches_open: Gauge,
}

impl Metrics {
    /// Adds them to a registry whose prefix is `baton_transfer`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit("payload", "KV payload moved", Unit::Bytes, self.bytes.clone());
        registry.register("cells", "Cells (one block of one layer) moved", self.cells.clone());
        registry.register("rejected_frames", "Frames received and not used, by what was wrong", self.rejected.clone());
        registry.register("refetched_cells", "Cells asked for a second time", self.refetched.clone());
        registry.register("pulls", "Pulls ended", self.pulls.clone());
        let help = "Pulls for which a transport was wanted but could not be used";
        registry.register("transport_downgrades", help, self.steps_down.clone());
        registry.register("offers", "Offers ended", self.offers.clone());
        let help = "Handoffs given up: the decode worker computed the prompt itself";
        registry.register("downgrades", help, self.downgrades.clone());
        registry.register("open_fetches", "Fetches being served", self.fetches_open.clone());
    }

    /// A pull failed and its prompt is computed by the reader instead.
    pub fn count_downgrade(&self, reason: &'static str) {
        self.downgrades.get_or_create(&Reason { reason }).inc();
    }

    /// Frames rejected so far because of their checksum.
    pub fn checksum_failures(&self) -> u64 {
        self.rejected.get_or_create(&Reason { reason: REJECTED_CHECKSUM }).get()
    }

    /// Frames rejected so far, for whatever reason.
    pub fn rejected_frames(&self) -> u64 {
        let reasons = [REJECTED_CHECKSUM, "encoding", "field"];
        reasons.into_iter().map(|reason| self.rejected.get_or_create(&Reason { reason }).get()).sum()
    }

    /// Pulls ended so far with one outcome (`ok`, or a [`crate::PullError::label`]).
    pub fn pulls(&self, outcome: &'static str) -> u64 {
        self.pulls.get_or_create(&Outcome { outcome }).get()
    }

    /// Pulls so far that went over `to` although `from` was wanted.
    pub fn transport_downgrades(&self, from: TransportKind, to: TransportKind) -> u64 {
        self.steps_down.get_or_create(&Step { from: from.as_str(), to: to.as_str() }).get()
    }

    /// Payload bytes received so far over one transport.
    pub fn bytes_received(&self, transport: TransportKind) -> u64 {
        self.bytes.get_or_create(&Flow { direction: "received", transport: transport.as_str() }).get()
    }

    pub(crate) fn count_step_down(&self, from: TransportKind, to: TransportKind) {
        self.steps_down.get_or_create(&Step { from: from.as_str(), to: to.as_str() }).inc();
    }

    pub(crate) fn count_cells(&self, direction: Direction, transport: TransportKind, n_cells: u64, bytes: u64) {
        let direction = match direction {
            Direction::Sent => "sent",
            Direction::Received => "received",
        };
        let flow = Flow { direction, transport: transport.as_str() };
        self.cells.get_or_create(&flow).inc_by(n_cells);
        self.bytes.get_or_create(&flow).inc_by(bytes);
    }

    pub(crate) fn count_rejected(&self, fault: crate::frame::FrameFault) {
        use crate::frame::FrameFault;
        let reason = match fault {
            FrameFault::Checksum => REJECTED_CHECKSUM,
            FrameFault::Encoding => "encoding",
            FrameFault::Field(_) => "field",
        };
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn count_refetched(&self, n_cells: u64) {
        self.refetched.inc_by(n_cells);
    }

    pub(crate) fn count_pull(&self, outcome: &'static str) {
        self.pulls.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn count_offer(&self, outcome: &'static str) {
        self.offers.get_or_create(&Outcome { outcome }).inc();
    }

    pub(crate) fn fetches_open(&self) -> &Gauge {
        &self.fetches_open
    }
}

const REJECTED_CHECKSUM: &str = "checksum";
