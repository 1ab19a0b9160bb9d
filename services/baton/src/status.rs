//! `baton status`: what a router sees of its cluster.

use anyhow::Context as _;
use rpc::inference::{InferenceApi as _, InferenceClient};

use crate::cli::StatusArgs;

#[allow(clippy::print_stdout, reason = "the command's answer")]
pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<()> {
    let client = InferenceClient::new(&args.grpc).with_context(|| format!("--grpc {}", args.grpc))?;
    let state = client.cluster_state().await.with_context(|| format!("no router answers at {}", args.grpc))?;
    if args.json {
        let members: Vec<_> = state
            .members
            .iter()
            .map(|m| {
                serde_json::json!({
                    "id": m.worker.id.as_str(), "epoch": m.worker.epoch.0, "role": m.role, "health": m.health,
                    "reason": m.reason, "model": m.model, "rpc": m.rpc_address, "kv": m.kv_address,
                    "admin": m.admin_address, "running": m.n_running, "waiting": m.n_waiting,
                    "blocks_total": m.blocks_total, "blocks_free": m.blocks_free,
                    "transport": m.transport, "numerics": m.numerics, "device": m.device,
                })
            })
            .collect();
        println!(
            "{}",
            serde_json::json!({
                "members": members, "requests": state.n_requests,
                "registry": { "connected": state.registry_connected, "age_ms": state.registry_age.as_millis() as u64 },
            })
        );
        return Ok(());
    }
    println!(
        "registry {} ({} ms old), {} requests",
        if state.registry_connected { "connected" } else { "NOT connected" },
        state.registry_age.as_millis(),
        state.n_requests
    );
    println!(
        "{:<16} {:<8} {:<12} {:>7} {:>7} {:>13}  {:<12} {:<11} {:<10} address",
        "worker", "role", "health", "running", "waiting", "blocks free", "transport", "numerics", "device"
    );
    for m in &state.members {
        println!(
            "{:<16} {:<8} {:<12} {:>7} {:>7} {:>13}  {:<12} {:<11} {:<10} {} {}",
            m.worker.id.as_str(),
            m.role,
            m.health,
            m.n_running,
            m.n_waiting,
            format!("{}/{}", m.blocks_free, m.blocks_total),
            m.transport,
            m.numerics,
            m.device,
            m.rpc_address,
            m.reason
        );
    }
    Ok(())
}
