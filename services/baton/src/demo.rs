//! `baton demo`: the main job in one command.

use std::net::{SocketAddr, TcpListener};

use crate::cli::{ChatArgs, DemoArgs, EngineArgs, ModelArgs, RoutingArgs, UpArgs};
use crate::up::Cluster;

#[allow(clippy::print_stdout, reason = "this command's purpose is what it prints")]
pub(crate) async fn run(args: DemoArgs) -> anyhow::Result<()> {
    if let Some(known) = crate::model::Known::find(&args.model) {
        let fetch = crate::cli::PullArgs { name: Some(known.name.to_owned()), print_path: false };
        tokio::task::spawn_blocking(move || crate::pull::run(&fetch)).await??;
    }
    let stop = bootstrap::shutdown_signal()?;
    let up = UpArgs {
        model: ModelArgs { model: args.model.clone(), served_model_name: None },
        engine: EngineArgs::default(),
        routing: RoutingArgs::default(),
        prefill: 1,
        decode: 1,
        routers: 1,
        http: args.http.unwrap_or_else(|| free_or_any(8000)),
        grpc: args.grpc.unwrap_or_else(|| free_or_any(50051)),
        admin: SocketAddr::from(([127, 0, 0, 1], 0)),
        registry: "memory".to_owned(),
    };
    let cluster = Cluster::start(up, stop.clone()).await?;
    println!("\nprocesses");
    for child in cluster.children() {
        let ports: Vec<_> = child.ports.iter().map(|(name, port)| format!("{name} {port}")).collect();
        println!("  {:<10} pid {:<8} {}", child.id, child.pid, ports.join(", "));
    }
    println!("\n> {}", args.question);
    let chat = ChatArgs {
        message: Some(args.question),
        grpc: cluster.grpc_address().to_string(),
        timeline: true,
        max_tokens: 64,
        temperature: 0.0,
        seed: None,
        system: None,
        json: false,
    };
    let answer = crate::chat::run(chat).await;
    if answer.is_ok() && !args.exit {
        println!("\nOpenAI-compatible HTTP  {}/v1", cluster.http_url());
        println!("gRPC                    {}", cluster.grpc_address());
        println!("Ctrl-C stops.");
        cluster.announce_ready();
        tokio::select! {
            () = stop.cancelled() => {}
            error = cluster.failed() => tracing::error!(%error, "the cluster failed"),
        }
    }
    stop.cancel();
    cluster.ended().await;
    answer
}

/// The usual port, or any free one when something else already listens there.
fn free_or_any(port: u16) -> SocketAddr {
    let usual = SocketAddr::from(([127, 0, 0, 1], port));
    let taken = TcpListener::bind(usual).is_err();
    SocketAddr::from(([127, 0, 0, 1], if taken { 0 } else { port }))
}
