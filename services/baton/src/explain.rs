//! `baton explain`: why a request went to its workers.

use anyhow::Context as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::cli::ExplainArgs;

/// Longest answer, bytes.
const ANSWER_MAX: usize = 16 << 20;

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) async fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let address = args.admin.strip_prefix("http://").unwrap_or(&args.admin).trim_end_matches('/');
    let explained = fetch(address, &args.request).await.with_context(|| format!("--admin {address}"))?;
    if args.json {
        println!("{explained}");
    } else {
        print!("{}", table(&explained));
    }
    Ok(())
}

async fn fetch(address: &str, request: &str) -> anyhow::Result<Value> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    anyhow::ensure!(!request.is_empty() && request.chars().all(is_name), "{request:?} is not a request's id");
    let stream = TcpStream::connect(address).await.context("no router answers")?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let call = async {
        let call = hyper::Request::get(format!("/debug/explain/{request}"))
            .header(hyper::header::HOST, address)
            .body(Empty::<Bytes>::new())?;
        let answer = sender.send_request(call).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
        anyhow::ensure!(status.is_success(), "{}", String::from_utf8_lossy(&body).trim_end());
        anyhow::Ok(serde_json::from_slice(&body)?)
    };
    tokio::pin!(call);
    tokio::select! {
        answer = &mut call => answer,
        ended = connection => {
            ended?;
            call.await
        }
    }
}

/// One block of lines for each placement.
fn table(explained: &Value) -> String {
    let mut out = String::new();
    for placement in list(&explained["placements"]) {
        let prefill = match &placement["prefill"]["worker"] {
            Value::String(worker) => format!("prefill {worker}"),
            _ => format!("no prefill worker ({})", text(&placement["prefill"]["none"])),
        };
        out.push_str(&format!(
            "choice {}, attempt {}: decode {}, {prefill}\n  policy {}, {} prompt tokens\n",
            placement["choice"],
            placement["attempt"],
            text(&placement["decode"]),
            text(&placement["policy"]),
            placement["prompt_tokens"],
        ));
        for (role, candidates) in [("decode", "decodes"), ("prefill", "prefills")] {
            for candidate in list(&placement[candidates]) {
                out.push_str(&line(role, candidate));
            }
        }
    }
    out
}

fn line(role: &str, candidate: &Value) -> String {
    let terms: Vec<_> = list(&candidate["terms"])
        .map(|term| format!("{} {:.6}", text(&term["name"]), term["value"].as_f64().unwrap_or_default()))
        .collect();
    let against: Vec<_> = list(&candidate["against"]).map(text).collect();
    let against = if against.is_empty() { String::new() } else { format!("  [{}]", against.join(", ")) };
    format!(
        "  {role:<8} {:<20} {:>7} cached  {:>14.6} = {}{against}\n",
        text(&candidate["worker"]),
        candidate["cached_tokens"],
        candidate["score"].as_f64().unwrap_or_default(),
        terms.join(" + "),
    )
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_candidate_has_a_line_with_its_terms() {
        let candidate = |worker: &str, against: &[&str]| {
            serde_json::json!({
                "worker": worker, "prefill": null, "cached_tokens": 32, "against": against, "score": 0.75,
                "terms": [{ "name": "queue", "value": 0.5 }, { "name": "prefill", "value": 0.25 }],
            })
        };
        let explained = serde_json::json!({ "request": "r", "placements": [{
            "choice": 0, "attempt": 1, "unix_ms": 1, "policy": "cost", "prompt_tokens": 64,
            "decode": "d0@1", "prefill": { "worker": "p1@2" },
            "decodes": [candidate("d0@1", &[])], "prefills": [candidate("p1@2", &[]), candidate("p0@1", &["suspect"])],
        }] });
        let table = table(&explained);
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "choice 0, attempt 1: decode d0@1, prefill p1@2");
        assert_eq!(lines[1], "  policy cost, 64 prompt tokens");
        assert_eq!(lines.len(), 5);
        assert!(lines[4].contains("p0@1") && lines[4].ends_with("queue 0.500000 + prefill 0.250000  [suspect]"));
    }
}
