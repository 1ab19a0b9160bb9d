//! The process's metrics and their two text forms.

mod classic;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// First part of every name.
const PREFIX: &str = "baton";

/// All metrics of a process; clones share them. Crates register theirs with [`Metrics::register`], once.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    /// With `baton_build_info` and `baton_process_uptime_seconds`.
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        let build = Info::new([("version", env!("CARGO_PKG_VERSION")), ("target", std::env::consts::ARCH)]);
        registry.register("build", "What was built", build);
        registry.register_collector(Box::new(Uptime(Instant::now())));
        Self(Arc::new(Mutex::new(registry)))
    }

    /// Lets `add` register metrics named `baton_<service>_…`, or `baton_…` if `service` is empty.
    pub fn register(&self, service: &str, add: impl FnOnce(&mut Registry)) {
        let mut registry = self.lock();
        add(if service.is_empty() { &mut registry } else { registry.sub_registry_with_prefix(service) });
    }

    /// In OpenMetrics text.
    pub fn to_openmetrics(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.lock()).expect("a string takes any text");
        text
    }

    /// In the classic text format (0.0.4), which every scraper reads.
    pub fn to_classic(&self) -> String {
        classic::from_openmetrics(&self.to_openmetrics())
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Debug)]
struct Uptime(Instant);

impl Collector for Uptime {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let uptime = ConstGauge::new(self.0.elapsed().as_secs_f64());
        let metric = encoder.encode_descriptor(
            "process_uptime",
            "Time since this process started.",
            Some(&Unit::Seconds),
            uptime.metric_type(),
        )?;
        uptime.encode(metric)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::EncodeLabelSet;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::exemplar::HistogramWithExemplars;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;

    use super::*;

    #[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
    struct Labels {
        model: String,
    }

    fn example() -> Metrics {
        let metrics = Metrics::new();
        metrics.register("router", |registry| {
            let requests = Family::<Labels, Counter>::default();
            for model in ["plain", "with \"quotes\", {braces} # hash\\ and\nlines", ""] {
                requests.get_or_create(&Labels { model: model.into() }).inc();
            }
            registry.register("requests", "Requests accepted", requests);
            registry.register("blocks", "Blocks", Gauge::<i64>::default());
            let time = HistogramWithExemplars::<Vec<(String, String)>>::new([0.1, 1.0].into_iter());
            time.observe(0.5, Some(vec![("trace_id".into(), "a # b".into())]), None);
            registry.register_with_unit("time_to_first_token", "Time", Unit::Seconds, time);
        });
        metrics
    }

    #[test]
    fn classic_text_is_what_a_scraper_expects() {
        let text = example().to_classic();
        classic::tests::assert_valid(&text);
        for line in [
            "# TYPE baton_router_requests_total counter",
            "baton_router_requests_total{model=\"plain\"} 1",
            "# TYPE baton_router_blocks gauge",
            "# TYPE baton_router_time_to_first_token_seconds histogram",
            "baton_router_time_to_first_token_seconds_bucket{le=\"1.0\"} 1",
            "baton_router_time_to_first_token_seconds_count 1",
            "# TYPE baton_build_info gauge",
            "# TYPE baton_process_uptime_seconds gauge",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn openmetrics_keeps_exemplars() {
        let text = example().to_openmetrics();
        assert!(text.contains("# {trace_id=\"a # b\"} 0.5"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }
}
