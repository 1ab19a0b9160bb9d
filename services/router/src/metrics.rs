//! Every metric of the router. Labels come from fixed sets, never from clients.

use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use types::{Code, Failure, Phase, PhaseTimes};

const FIRST_TOKEN_BUCKETS: [f64; 21] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0,
];
const INTER_TOKEN_BUCKETS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0, 40.0];
const PHASE_BUCKETS: [f64; 15] =
    [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 20.0, 80.0];

/// By which door a request came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Grpc,
}

impl Endpoint {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Grpc => "grpc",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Ok,
    /// The client's fault.
    Invalid,
    /// No room, no worker.
    Refused,
    /// The client left.
    Cancelled,
    /// Its time was over.
    Late,
    Failed,
}

impl Outcome {
    /// Of a request that failed.
    pub(crate) const fn of(failure: &Failure) -> Self {
        match failure.code {
            Code::InvalidArgument | Code::NotFound | Code::Unimplemented => Self::Invalid,
            Code::ResourceExhausted | Code::Unavailable => Self::Refused,
            Code::Cancelled => Self::Cancelled,
            Code::DeadlineExceeded => Self::Late,
            Code::FailedPrecondition | Code::Aborted | Code::DataLoss | Code::Internal => Self::Failed,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
            Self::Late => "late",
            Self::Failed => "failed",
        }
    }
}

/// Why a choice was given to workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum AttemptKind {
    First,
    /// An earlier attempt failed before any token.
    Retry,
    /// An earlier attempt failed after tokens had been sent.
    Resume,
}

impl AttemptKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Resume => "resume",
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    endpoint: &'static str,
    outcome: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct SourceLabel {
    source: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

#[derive(Clone)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    attempts: Family<KindLabel, Counter>,
    skipped: Family<ReasonLabel, Counter>,
    phases: Family<PhaseLabel, Histogram, Buckets>,
    pub(crate) prompt_tokens: Counter,
    /// Prompt tokens that those who compute them were thought to hold.
    pub(crate) predicted_cached_tokens: Counter,
    index_bytes: Gauge,
    index_blocks: Family<SourceLabel, Gauge>,
    index_evicted: Counter,
    index_unattached: Counter,
    index_resyncs: Counter,
    pub(crate) generated_tokens: Counter,
    /// Requests being served.
    pub(crate) in_flight: Gauge,
    /// Requests waiting to be admitted.
    pub(crate) waiting: Gauge,
    first_token: Histogram,
    inter_token: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            requests: Family::default(),
            attempts: Family::default(),
            skipped: Family::default(),
            phases: Family::new_with_constructor(Buckets(&PHASE_BUCKETS)),
            prompt_tokens: Counter::default(),
            predicted_cached_tokens: Counter::default(),
            index_bytes: Gauge::default(),
            index_blocks: Family::default(),
            index_evicted: Counter::default(),
            index_unattached: Counter::default(),
            index_resyncs: Counter::default(),
            generated_tokens: Counter::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            first_token: Histogram::new(FIRST_TOKEN_BUCKETS),
            inter_token: Histogram::new(INTER_TOKEN_BUCKETS),
        }
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        registry.register("requests", "Requests that ended", self.requests.clone());
        registry.register("attempts", "Choices given to workers", self.attempts.clone());
        registry.register(
            "disaggregation_skipped",
            "Choices whose prompt a decode worker computed by itself",
            self.skipped.clone(),
        );
        registry.register_with_unit("phase", "Time in each phase", Unit::Seconds, self.phases.clone());
        registry.register("prompt_tokens", "Prompt tokens of admitted requests", self.prompt_tokens.clone());
        registry.register(
            "predicted_cached_tokens",
            "Prompt tokens that the workers chosen were thought to hold",
            self.predicted_cached_tokens.clone(),
        );
        registry.register_with_unit("index", "Memory of the prefix index", Unit::Bytes, self.index_bytes.clone());
        registry.register("index_blocks", "Blocks in the prefix index", self.index_blocks.clone());
        registry.register("index_blocks_evicted", "Blocks given up for lack of room", self.index_evicted.clone());
        registry.register(
            "index_blocks_unattached",
            "Blocks of events whose beginning is not known here",
            self.index_unattached.clone(),
        );
        registry.register("index_resyncs", "Snapshots wanted from workers", self.index_resyncs.clone());
        registry.register("generated_tokens", "Tokens sent to clients", self.generated_tokens.clone());
        registry.register("requests_in_flight", "Requests being served", self.in_flight.clone());
        registry.register("requests_waiting", "Requests waiting to be admitted", self.waiting.clone());
        registry.register_with_unit(
            "time_to_first_token",
            "From a request's arrival to its first token",
            Unit::Seconds,
            self.first_token.clone(),
        );
        registry.register_with_unit(
            "inter_token",
            "Between two tokens of a choice",
            Unit::Seconds,
            self.inter_token.clone(),
        );
    }

    pub(crate) fn request_ended(&self, endpoint: Endpoint, outcome: Outcome) {
        let labels = RequestLabels { endpoint: endpoint.as_str(), outcome: outcome.as_str() };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn attempt(&self, kind: AttemptKind) {
        self.attempts.get_or_create(&KindLabel { kind: kind.as_str() }).inc();
    }

    /// `reason`: of `routing::NoPrefill`, or `recomputed`.
    pub(crate) fn disaggregation_skipped(&self, reason: &'static str) {
        self.skipped.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(crate) fn phases(&self, phases: &PhaseTimes) {
        for phase in Phase::ALL {
            let time = phases.get(phase);
            if !time.is_zero() {
                self.phases.get_or_create(&PhaseLabel { phase: phase.as_str() }).observe(time.as_secs_f64());
            }
        }
    }

    /// Sizes of the prefix index.
    pub(crate) fn index(&self, stats: &index::Stats) {
        let index::Stats { bytes, told_blocks, guessed_blocks, evicted, unattached, resyncs } = *stats;
        self.index_bytes.set(bytes as i64);
        for (source, blocks) in [("events", told_blocks), ("choices", guessed_blocks)] {
            self.index_blocks.get_or_create(&SourceLabel { source }).set(blocks as i64);
        }
        self.index_evicted.inner().store(evicted, Ordering::Relaxed);
        self.index_unattached.inner().store(unattached, Ordering::Relaxed);
        self.index_resyncs.inner().store(resyncs, Ordering::Relaxed);
    }

    pub(crate) fn first_token(&self, time: Duration) {
        self.first_token.observe(time.as_secs_f64());
    }

    pub(crate) fn next_token(&self, time: Duration) {
        self.inter_token.observe(time.as_secs_f64());
    }
}
