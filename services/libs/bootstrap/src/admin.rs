//! The admin port: probes, metrics and block accounting over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use types::{Accounting, RequestId};

use crate::Metrics;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Longest wait for a worker's accounting.
const ACCOUNTING_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for open connections at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Counts where a worker's blocks are.
pub type AccountingHook = Arc<dyn Fn() -> BoxFuture<'static, Accounting> + Send + Sync>;

/// Says why a request went to its workers; `None`: it is not known (any more).
pub type ExplainHook = Arc<dyn Fn(RequestId) -> Option<serde_json::Value> + Send + Sync>;

/// What the admin port asks its service.
#[derive(Clone)]
pub struct AdminHooks {
    /// Whether new requests can be served now.
    pub ready: Arc<dyn Fn() -> bool + Send + Sync>,
    /// `None`: the role has no blocks, `/debug/accounting` answers 404.
    pub accounting: Option<AccountingHook>,
    /// `None`: the role chooses no workers, `/debug/explain/…` answers 404.
    pub explain: Option<ExplainHook>,
}

/// Serves `/live /ready /startup /metrics /debug/accounting /debug/explain/<request>`.
pub struct AdminServer {
    state: Arc<Admin>,
}

struct Admin {
    hooks: AdminHooks,
    metrics: Metrics,
    was_ready: AtomicBool,
}

impl AdminServer {
    /// For one service.
    pub fn new(metrics: Metrics, hooks: AdminHooks) -> Self {
        Self { state: Arc::new(Admin { hooks, metrics, was_ready: AtomicBool::new(false) }) }
    }

    /// Serves until `shutdown`, and a second longer for answers that are under way.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
        let server = axum::serve(listener, self.router()).with_graceful_shutdown(shutdown.clone().cancelled_owned());
        let drained = async {
            shutdown.cancelled().await;
            tokio::time::sleep(DRAIN_TIMEOUT).await;
        };
        tokio::select! {
            result = server.into_future() => result,
            () = drained => Ok(()),
        }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/live", get(async || "live\n"))
            .route("/ready", get(ready))
            .route("/startup", get(startup))
            .route("/metrics", get(metrics))
            .route("/debug/accounting", get(accounting))
            .route("/debug/explain/{request}", get(explain))
            .with_state(self.state)
    }
}

impl Admin {
    fn ready(&self) -> bool {
        let ready = (self.hooks.ready)();
        if ready {
            self.was_ready.store(true, Ordering::Relaxed);
        }
        ready
    }
}

async fn ready(State(admin): State<Arc<Admin>>) -> Response {
    if admin.ready() { "ready\n".into_response() } else { unavailable("not ready\n") }
}

/// Has it been ready once? Then it is no longer starting.
async fn startup(State(admin): State<Arc<Admin>>) -> Response {
    if admin.was_ready.load(Ordering::Relaxed) || admin.ready() {
        "started\n".into_response()
    } else {
        unavailable("starting\n")
    }
}

async fn metrics(State(admin): State<Arc<Admin>>, headers: HeaderMap) -> Response {
    if wants_openmetrics(&headers) {
        ([(header::CONTENT_TYPE, OPENMETRICS)], admin.metrics.to_openmetrics()).into_response()
    } else {
        ([(header::CONTENT_TYPE, CLASSIC)], admin.metrics.to_classic()).into_response()
    }
}

async fn accounting(State(admin): State<Arc<Admin>>) -> Response {
    let Some(hook) = &admin.hooks.accounting else {
        return (StatusCode::NOT_FOUND, "this role has no blocks\n").into_response();
    };
    let Ok(counted) = tokio::time::timeout(ACCOUNTING_TIMEOUT, hook()).await else {
        return unavailable("the worker does not answer\n");
    };
    let Accounting { total, free, request, transfer, cached, n_requests, n_streams } = counted;
    axum::Json(serde_json::json!({
        "blocks": { "total": total, "free": free, "request": request, "transfer": transfer, "cached": cached },
        "requests": n_requests,
        "streams": n_streams,
    }))
    .into_response()
}

/// A request's id: 32 hex digits, or what clients get, which ends in them.
async fn explain(State(admin): State<Arc<Admin>>, Path(name): Path<String>) -> Response {
    let Some(hook) = &admin.hooks.explain else {
        return (StatusCode::NOT_FOUND, "this role chooses no workers\n").into_response();
    };
    let id = name.rsplit('-').next().and_then(|id| id.parse::<RequestId>().ok());
    let Some(id) = id else {
        return (StatusCode::BAD_REQUEST, "a request's id ends in 32 hex digits\n").into_response();
    };
    match hook(id) {
        Some(explained) => axum::Json(explained).into_response(),
        None => (StatusCode::NOT_FOUND, "nothing is known about this request (any more)\n").into_response(),
    }
}

fn unavailable(text: &'static str) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

/// Whether an `Accept` header names OpenMetrics and does not give it quality 0.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let refused = |part: &str| {
        let quality = part.split(';').skip(1).find_map(|p| p.trim().strip_prefix("q="));
        quality.is_some_and(|q| q.trim().parse::<f32>().is_ok_and(|q| q <= 0.0))
    };
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().starts_with("application/openmetrics-text") && !refused(part))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    fn server(ready: Arc<AtomicBool>, accounting: Option<AccountingHook>) -> Router {
        let ready = Arc::new(move || ready.load(Ordering::Relaxed));
        AdminServer::new(Metrics::new(), AdminHooks { ready, accounting, explain: None }).router()
    }

    async fn get(router: &Router, path: &str, accept: &str) -> (u16, String, String) {
        let request = Request::get(path).header(header::ACCEPT, accept).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status().as_u16();
        let kind = response.headers().get(header::CONTENT_TYPE).map(|v| v.to_str().expect("text").to_owned());
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn probes_follow_the_service() {
        let ready = Arc::new(AtomicBool::new(false));
        let router = server(ready.clone(), None);
        let probe = async || {
            let mut seen = Vec::new();
            for path in ["/live", "/startup", "/ready"] {
                seen.push(get(&router, path, "*/*").await.0);
            }
            seen
        };
        assert_eq!(probe().await, [200, 503, 503]);
        ready.store(true, Ordering::Relaxed);
        assert_eq!(probe().await, [200, 200, 200]);
        ready.store(false, Ordering::Relaxed);
        assert_eq!(probe().await, [200, 200, 503]);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics_only_when_asked_for() {
        let router = server(Arc::new(AtomicBool::new(true)), None);
        let cases = [
            ("*/*", CLASSIC),
            ("text/plain;version=0.0.4", CLASSIC),
            ("application/openmetrics-text;q=0, text/plain", CLASSIC),
            ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3", OPENMETRICS),
        ];
        for (accept, wanted) in cases {
            let (status, kind, body) = get(&router, "/metrics", accept).await;
            assert_eq!((status, kind.as_str()), (200, wanted), "{accept}");
            assert_eq!(body.contains("# EOF"), wanted == OPENMETRICS, "{accept}");
        }
    }

    #[tokio::test]
    async fn requests_are_explained_under_every_name_they_have() {
        let known = RequestId(0xabc);
        let hook: ExplainHook = Arc::new(move |id| (id == known).then(|| serde_json::json!({ "is": "known" })));
        let hooks = AdminHooks { ready: Arc::new(|| true), accounting: None, explain: Some(hook) };
        let router = AdminServer::new(Metrics::new(), hooks).router();
        for (name, status) in [
            (known.to_string(), 200),
            (format!("chatcmpl-{known}"), 200),
            (RequestId(1).to_string(), 404),
            ("abc".into(), 400),
            ("x".repeat(32), 400),
        ] {
            assert_eq!(get(&router, &format!("/debug/explain/{name}"), "*/*").await.0, status, "{name}");
        }
        let worker = server(Arc::new(AtomicBool::new(true)), None);
        assert_eq!(get(&worker, &format!("/debug/explain/{known}"), "*/*").await.0, 404);
    }

    #[tokio::test]
    async fn accounting_has_exactly_the_promised_shape() {
        let ready = Arc::new(AtomicBool::new(true));
        assert_eq!(get(&server(ready.clone(), None), "/debug/accounting", "*/*").await.0, 404);
        let counted = Accounting { total: 9, free: 3, request: 4, transfer: 2, cached: 1, n_requests: 5, n_streams: 6 };
        let router = server(ready, Some(Arc::new(move || Box::pin(async move { counted }))));
        let (status, kind, body) = get(&router, "/debug/accounting", "*/*").await;
        assert_eq!((status, kind.as_str()), (200, "application/json"));
        assert_eq!(
            body,
            r#"{"blocks":{"total":9,"free":3,"request":4,"transfer":2,"cached":1},"requests":5,"streams":6}"#
        );
    }
}
