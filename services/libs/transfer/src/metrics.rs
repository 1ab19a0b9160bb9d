//! Metrics of the data plane: every name of this crate stands here.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// Value of the label `transport`: the transport that always works.
pub const TRANSPORT_GRPC: &str = "grpc";

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

    /// Pulls ended so far with one outcome (`ok`, or a [`crate::PullError::label`]).
    pub fn pulls(&self, outcome: &'static str) -> u64 {
        self.pulls.get_or_create(&Outcome { outcome }).get()
    }

    pub(crate) fn count_cells(&self, direction: Direction, n_cells: u64, bytes: u64) {
        let direction = match direction {
            Direction::Sent => "sent",
            Direction::Received => "received",
        };
        let flow = Flow { direction, transport: TRANSPORT_GRPC };
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
