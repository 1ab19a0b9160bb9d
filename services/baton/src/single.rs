//! `baton single`: router and one decode worker that prefills by itself, in one process. The reference deployment:
//! what a cluster answers must be what this answers.

use std::net::SocketAddr;
use std::sync::Arc;

use bootstrap::{Announcement, Runtime};
use registry::Registry;
use registry::memory::MemoryRegistry;

use crate::cli::SingleArgs;
use crate::engines::Model;
use crate::roles::{opener, say_ready, worker_config};
use crate::up::wait_until_usable;

const ROUTER: &str = "router-0";
const WORKER: &str = "decode-0";

pub(crate) async fn run(args: SingleArgs) -> anyhow::Result<()> {
    let model = Model::resolve(&args.model)?;
    args.engine.validate()?;
    let runtime = Runtime::new("single", "single", bootstrap::shutdown_signal()?);
    let registry: Arc<dyn Registry> = Arc::new(MemoryRegistry::new());

    let mut worker = decode::Config::loopback(WORKER, model.name.as_str());
    worker.worker = worker_config(&args.engine);
    // The worker's admin port serves the whole process: metrics are shared, and blocks are the worker's.
    worker.node.admin_listen = Some(args.admin);
    let mut router = router::Config::new(ROUTER, model.path.clone(), model.name.as_str());
    (router.http, router.grpc) = (args.http, args.grpc);
    args.routing.apply(&mut router);
    router.prefix_secret = args.engine.names.secret();

    let decoding =
        decode::run(worker, opener(model, args.engine), registry.clone(), runtime.for_instance("decode", WORKER));
    let routing = router::run(router, runtime.for_instance("router", ROUTER), registry);
    let announcing = async {
        announce(&runtime).await?;
        runtime.shutdown().cancelled().await;
        anyhow::Ok(())
    };
    let parts =
        async { tokio::try_join!(stop_all_on_end(&runtime, decoding), stop_all_on_end(&runtime, routing), announcing) };
    Box::pin(parts).await.map(|_| ())
}

/// One part's end is the process's.
async fn stop_all_on_end(runtime: &Runtime, part: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let result = part.await;
    runtime.shutdown().cancel();
    result
}

async fn announce(runtime: &Runtime) -> anyhow::Result<()> {
    let mut announced = runtime.announced();
    let parts = tokio::select! {
        parts = announced.wait_for(|parts| parts.len() == 2) => parts?.clone(),
        () = runtime.shutdown().cancelled() => return Ok(()),
    };
    let address = |id: &str, pick: fn(&Announcement) -> Option<SocketAddr>| {
        parts.iter().find(|part| part.id == id).and_then(pick).map(|a| a.to_string()).unwrap_or_default()
    };
    let grpc = address(ROUTER, |part| part.ports.grpc);
    tokio::select! {
        usable = wait_until_usable(&grpc, 1) => usable?,
        () = runtime.shutdown().cancelled() => return Ok(()),
    }
    let (http, admin) = (address(ROUTER, |part| part.ports.http), address(WORKER, |part| part.ports.admin));
    say_ready(&format!("ready http=http://{http} grpc={grpc} admin=http://{admin}"));
    Ok(())
}
