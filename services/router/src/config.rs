//! Settings of a router.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kvcache::hash::Secret;
use types::WorkerId;

/// Most memory for the index.
const INDEX_BYTES_MAX: usize = 64 << 30;

/// Everything a router is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name in the cluster.
    pub id: WorkerId,
    /// Model directory or GGUF file: tokenizer and chat template are read from it, weights are not.
    pub model: PathBuf,
    /// Name of the model in requests; workers that serve another name are not used.
    pub model_name: String,
    /// Client API over HTTP; port 0 takes any.
    pub http: SocketAddr,
    /// Client API over gRPC; port 0 takes any.
    pub grpc: SocketAddr,
    /// Admin port; `None`: this process has another one.
    pub admin: Option<SocketAddr>,
    /// How workers are chosen.
    pub rules: routing::Rules,
    /// Goes into the names of blocks: that of the workers.
    pub prefix_secret: Secret,
    /// What is remembered of the workers' caches; the seed is drawn at the start.
    pub index: index::Config,
    /// Sizes and times.
    pub limits: Limits,
}

impl Config {
    /// With the usual limits, on any free loopback ports, without an admin port.
    pub fn new(id: impl Into<String>, model: PathBuf, model_name: impl Into<String>) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            id: WorkerId::new(id.into()),
            model,
            model_name: model_name.into(),
            http: any,
            grpc: any,
            admin: None,
            rules: routing::Rules::default(),
            prefix_secret: Secret::default(),
            index: index::Config::default(),
            limits: Limits::default(),
        }
    }

    /// Checks what can be checked without files and sockets.
    ///
    /// # Errors
    /// The first setting that makes no sense.
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        let bad = |setting, message: &str| Err(InvalidConfig { setting, message: message.into() });
        if self.id.as_str().is_empty() {
            return bad("id", "must not be empty");
        }
        if self.model_name.is_empty() {
            return bad("model_name", "must not be empty");
        }
        if self.index.bytes > INDEX_BYTES_MAX {
            return bad("index.bytes", "must be at most 64 GiB");
        }
        let limits = &self.limits;
        if limits.n_choices == 0 || limits.n_admitted < limits.n_choices as usize {
            return bad("limits.n_admitted", "must be at least limits.n_choices, which must be at least 1");
        }
        if limits.n_attempts == 0 {
            return bad("limits.n_attempts", "must be at least 1");
        }
        Ok(())
    }
}

/// A setting that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{setting}: {message}")]
pub struct InvalidConfig {
    /// Which.
    pub setting: &'static str,
    /// What it must be.
    pub message: String,
}

/// Sizes and times. Every queue and every wait of the router is bounded by one of them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Choices being served at the same time.
    pub n_admitted: usize,
    /// Requests waiting to be admitted; more are refused.
    pub n_waiting: usize,
    /// Longest wait for admission and for room on a worker, together.
    pub queue_time: Duration,
    /// Longest request; clients may ask for less.
    pub request_time: Duration,
    /// Longest wait for a choice's first token once its workers have been chosen.
    pub first_token_time: Duration,
    /// Longest wait for each further token.
    pub next_token_time: Duration,
    /// Longest time that a client takes no event although one is there.
    pub slow_client_time: Duration,
    /// Attempts to serve a choice, the first included.
    pub n_attempts: u32,
    /// A worker that failed is avoided for this long.
    pub suspicion: Duration,
    /// Choices of one prompt (`n`).
    pub n_choices: u32,
    /// Prompts of one completion request.
    pub n_prompts: usize,
    /// Choices of one completion request over all its prompts.
    pub n_choices_in_all: usize,
    /// Messages of a conversation.
    pub n_messages: usize,
    /// Stop strings.
    pub n_stop_strings: usize,
    /// Longest stop string, bytes.
    pub stop_string_bytes: usize,
    /// Longest HTTP body, bytes.
    pub body_bytes: usize,
    /// Deepest JSON body.
    pub json_depth: usize,
    /// Longest time for a request's headers, and again for its body.
    pub read_time: Duration,
    /// Open HTTP connections.
    pub n_connections: usize,
    /// Requests may go on this long after shutdown began.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            n_admitted: 256,
            n_waiting: 1024,
            queue_time: Duration::from_secs(60),
            request_time: Duration::from_secs(600),
            first_token_time: Duration::from_secs(300),
            next_token_time: Duration::from_secs(60),
            slow_client_time: Duration::from_secs(60),
            n_attempts: 3,
            suspicion: Duration::from_secs(3),
            n_choices: 16,
            n_prompts: 64,
            n_choices_in_all: 128,
            n_messages: 2048,
            n_stop_strings: 16,
            stop_string_bytes: 256,
            body_bytes: 4 << 20,
            json_depth: 64,
            read_time: Duration::from_secs(30),
            n_connections: 4096,
            grace: Duration::from_secs(5),
        }
    }
}
