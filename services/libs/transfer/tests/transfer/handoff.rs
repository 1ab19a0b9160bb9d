//! Source and reader over loopback: the life of an offer.

use std::time::Duration;

use crate::support::{BLOCK_TOKENS, Bed, CONFIG, N_LAYERS, handoff, have, holds_prompt, over_every_transport};
use proto::v1 as wire;
use tokio::time::{Instant, timeout};
use transfer::{EndCause, Pull, PullError, Pulled, TransportKind};
use types::{Code, Epoch, Failure};

const SECOND: Duration = Duration::from_secs(1);

over_every_transport!(
    cells_arrive_while_the_prompt_is_computed,
    blocks_that_the_reader_has_do_not_cross,
    a_large_prompt_takes_many_messages,
    a_fetch_may_come_before_its_offer,
    a_fetch_without_an_offer_ends,
    a_late_fetch_is_told_at_once_that_the_offer_has_ended,
    only_the_declared_reader_of_this_incarnation_may_fetch,
    an_incompatible_reader_is_told_which_field_differs,
    an_offer_is_fetched_once,
    a_withdrawn_offer_ends_its_fetch_with_a_reason,
    a_failed_computation_is_told_to_the_reader,
    an_offer_that_nobody_fetches_expires,
    a_reader_that_leaves_releases_the_blocks,
    a_peer_that_is_silent_or_gone_is_noticed,
    a_waiting_reader_hears_the_heartbeat,
);

async fn cells_arrive_while_the_prompt_is_computed(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(18);
    let pull = bed.pull(18);
    let pulled = async { bed.puller.pull(&pull).await };
    let compute = async {
        for chunk in [0..5, 5..6, 6..18] {
            assert_eq!(bed.puller.metrics().pulls("ok"), 0, "not sealed before everything is there");
            computing.publish(chunk.clone());
            // Every block that is full by now crosses before more is computed.
            let n_full = chunk.end / BLOCK_TOKENS;
            timeout(SECOND, until(|| (0..n_full).all(|b| pull.arena.rows(N_LAYERS - 1, b as u32) > 0))).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        offer.finish(handoff(18));
        offer.ended().await
    };
    let (pulled, ended) = tokio::join!(pulled, compute);
    let bytes = (5 * N_LAYERS * 256) as u64;
    let Pulled { handoff: record, bytes: received, refetched, transport, .. } = pulled.unwrap();
    assert_eq!((record, received, refetched, transport), (handoff(18), bytes, 0, kind));
    assert!(holds_prompt(&pull));
    assert_eq!((ended.cause, ended.bytes), (EndCause::Fetched, bytes));
    timeout(SECOND, until(|| computing.released())).await.unwrap();
    assert_eq!(bed.source.n_offers(), 0);
}

async fn blocks_that_the_reader_has_do_not_cross(kind: TransportKind) {
    for n_here in 0..5 {
        let bed = Bed::new(kind, 256).await;
        let (offer, computing) = bed.offer(18);
        computing.publish_all();
        offer.finish(handoff(18));
        let mut pull = bed.pull(18);
        have(&computing, &mut pull, n_here);
        let (pulled, ended) = tokio::join!(bed.puller.pull(&pull), offer.ended());
        let bytes = ((5 - n_here) * N_LAYERS * 256) as u64;
        assert_eq!((pulled.unwrap().bytes, ended.bytes, ended.cause), (bytes, bytes, EndCause::Fetched));
        assert!(holds_prompt(&pull));
    }
    let bed = Bed::new(kind, 256).await;
    let (_offer, computing) = bed.offer(18);
    computing.publish_all();
    let mut pull = bed.pull(18);
    pull.n_blocks_here = 5;
    assert_eq!(refusal(&bed, &pull).await.code, Code::Internal, "the reader's own mistake");
}

/// What a reader says that it has is no reason to believe it.
#[tokio::test]
async fn a_reader_cannot_have_more_than_there_is() {
    let bed = Bed::new(TransportKind::Grpc, 256).await;
    let (_offer, computing) = bed.offer(18);
    computing.publish_all();
    let mut request = fetch_request(&bed.pull(18));
    request.n_blocks_here = u32::MAX;
    let channel = rpc::net::channel(&bed.address.to_string(), &rpc::net::Limits::kv()).unwrap();
    let mut client = proto::v1::kv_service_client::KvServiceClient::new(channel);
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), futures::stream::pending());
    let refused = client.fetch(requests).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

async fn a_large_prompt_takes_many_messages(kind: TransportKind) {
    let bed = Bed::new(kind, 1 << 20).await;
    let (offer, computing) = bed.offer(40);
    let pull = bed.pull(40);
    computing.publish_all();
    offer.finish(handoff(40));
    let (pulled, ended) = tokio::join!(bed.puller.pull(&pull), offer.ended());
    assert_eq!(pulled.unwrap().bytes, 30 << 20);
    assert_eq!(ended.cause, EndCause::Fetched);
    assert!(holds_prompt(&pull));
}

async fn a_fetch_may_come_before_its_offer(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let pull = bed.pull(3);
    let offer = async {
        tokio::time::sleep(CONFIG.offer_wait / 3).await;
        let (offer, computing) = bed.offer(3);
        computing.publish_all();
        offer.finish(handoff(3));
        offer.ended().await
    };
    let (pulled, ended) = tokio::join!(bed.puller.pull(&pull), offer);
    pulled.unwrap();
    assert_eq!(ended.cause, EndCause::Fetched);
}

async fn a_fetch_without_an_offer_ends(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let refused = refusal(&bed, &bed.pull(3)).await;
    assert_eq!((refused.code, refused.reason), (Code::NotFound, "KV_NOT_OFFERED"));
}

async fn a_late_fetch_is_told_at_once_that_the_offer_has_ended(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, _computing) = bed.offer(3);
    offer.fail(Failure::new(Code::Aborted, "CHOICE_FINISHED", "nothing to hand over"));
    drop(offer);
    assert_eq!(refusal(&bed, &bed.pull(3)).await.reason, "CHOICE_FINISHED");

    // A newer owner waits for an offer of its own.
    let mut newer = bed.pull(3);
    newer.owner_epoch = Epoch(6);
    assert_eq!(refusal(&bed, &newer).await.reason, "KV_NOT_OFFERED");

    let pull = bed.pull(5);
    bed.source.refuse(pull.request, pull.choice, Epoch(7), Failure::cancelled());
    assert_eq!(refusal(&bed, &pull).await.reason, "CANCELLED");
    let (offer, computing) = bed.offer(5);
    computing.publish_all();
    offer.finish(handoff(5));
    bed.puller.pull(&pull).await.unwrap();
}

/// Changes one thing about a pull, and says what the source must answer.
async fn check_refused(kind: TransportKind, reason: &str, change: fn(&mut Pull)) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    computing.publish_all();
    offer.finish(handoff(9));
    let mut pull = bed.pull(9);
    change(&mut pull);
    let started = Instant::now();
    let refused = refusal(&bed, &pull).await;
    assert_eq!(refused.reason, reason, "{refused}");
    assert!(started.elapsed() < SECOND, "refused at once");
    assert!((0..3).all(|block| pull.arena.rows(0, block) == 0), "nothing was written");
    // Whoever was refused has not used up the offer.
    bed.puller.pull(&bed.pull(9)).await.unwrap();
}

async fn only_the_declared_reader_of_this_incarnation_may_fetch(kind: TransportKind) {
    check_refused(kind, "STALE_EPOCH", |p| p.peer.epoch = Epoch(10)).await;
    check_refused(kind, "STALE_EPOCH", |p| p.peer.id = types::WorkerId::new("prefill-1")).await;
    check_refused(kind, "STALE_OWNER", |p| p.owner_epoch = Epoch(4)).await;
    check_refused(kind, "KV_WRONG_READER", |p| p.reader.epoch = Epoch(99)).await;
    check_refused(kind, "KV_HASH_MISMATCH", |p| p.hashes[1] = types::BlockHash([0; 16])).await;
    check_refused(kind, "INCOMPATIBLE", |p| p.compatibility.model_digest = "other".into()).await;
}

async fn an_incompatible_reader_is_told_which_field_differs(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let mut pull = bed.pull(9);
    pull.compatibility.rope = "yarn".into();
    let refused = refusal(&bed, &pull).await;
    assert_eq!((refused.code, refused.param.as_deref()), (Code::FailedPrecondition, Some("rope")));
    assert!(refused.message.contains("rope") && !refused.message.contains("geometry"), "{refused}");
}

async fn an_offer_is_fetched_once(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    computing.publish_all();
    offer.finish(handoff(9));
    let first = bed.pull(9);
    bed.puller.pull(&first).await.unwrap();
    let refused = refusal(&bed, &bed.pull(9)).await;
    assert_eq!(refused.reason, "KV_NOT_FETCHABLE");
    drop(offer);
}

async fn a_withdrawn_offer_ends_its_fetch_with_a_reason(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    let pull = bed.pull(9);
    let withdraw = async {
        computing.publish(0..4);
        timeout(SECOND, until(|| pull.arena.rows(0, 0) > 0)).await.unwrap();
        drop(offer);
    };
    let (refused, ()) = tokio::join!(refusal(&bed, &pull), withdraw);
    assert_eq!((refused.code, refused.reason), (Code::Aborted, "KV_WITHDRAWN"));
    timeout(SECOND, until(|| computing.released())).await.unwrap();
}

async fn a_failed_computation_is_told_to_the_reader(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    let fail = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        offer.fail(Failure::new(Code::Internal, "ENGINE_FAILED", "engine failed"));
        drop(offer);
    };
    let pull = bed.pull(9);
    let (refused, ()) = tokio::join!(refusal(&bed, &pull), fail);
    assert_eq!(refused.reason, "ENGINE_FAILED");
    timeout(SECOND, until(|| computing.released())).await.unwrap();
}

async fn an_offer_that_nobody_fetches_expires(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    computing.publish_all();
    offer.finish(handoff(9));
    let ended = timeout(SECOND, offer.ended()).await.unwrap();
    assert_eq!((ended.cause, ended.bytes), (EndCause::Expired, 0));
    assert!(computing.released());
    assert_eq!(bed.source.n_offers(), 0);
}

async fn a_reader_that_leaves_releases_the_blocks(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    computing.publish(0..4);
    let pull = bed.pull(9);
    tokio::select! {
        _ = bed.puller.pull(&pull) => panic!("cannot be complete"),
        reached = timeout(SECOND, until(|| pull.arena.rows(0, 0) > 0)) => reached.unwrap(),
    }
    let rows: Vec<_> = (0..3).map(|block| pull.arena.rows(0, block)).collect();
    computing.publish(4..9);
    let ended = timeout(SECOND, offer.ended()).await.unwrap();
    assert_eq!(ended.cause, EndCause::Abandoned);
    timeout(SECOND, until(|| computing.released())).await.unwrap();
    let later: Vec<_> = (0..3).map(|block| pull.arena.rows(0, block)).collect();
    assert_eq!(rows, later, "a dropped pull writes no more");
    assert_eq!(bed.puller.metrics().pulls("cancelled"), 1);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let bed = Bed::new(TransportKind::Grpc, 4 << 20).await;
    let (offer, computing) = bed.offer(40);
    computing.publish_all();
    offer.finish(handoff(40));
    let pull = bed.pull(40);
    let channel = rpc::net::channel(&bed.address.to_string(), &rpc::net::Limits::kv()).unwrap();
    let mut client = proto::v1::kv_service_client::KvServiceClient::new(channel);
    let request = fetch_request(&pull);
    let holding = wire::FetchNote { kind: wire::fetch_note::Kind::Holding.into(), reason: String::new() };
    let holding = wire::FetchRequest { note: Some(holding), ..wire::FetchRequest::default() };
    let holding = futures::stream::unfold((), move |()| {
        let note = holding.clone();
        async move {
            tokio::time::sleep(CONFIG.silence / 10).await;
            Some((note, ()))
        }
    });
    let requests = futures::StreamExt::chain(futures::stream::iter([request]), Box::pin(holding));
    let unread = client.fetch(requests).await.unwrap();
    let ended = timeout(CONFIG.progress_timeout * 3, offer.ended()).await.unwrap();
    assert_eq!(ended.cause, EndCause::Abandoned);
    assert!(ended.bytes < 120 << 20, "sending is bounded by what the reader takes");
    timeout(SECOND, until(|| computing.released())).await.unwrap();
    drop(unread);
}

async fn a_peer_that_is_silent_or_gone_is_noticed(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (listener, silent) = crate::support::listen().await;
    let mut pull = bed.pull(9);
    pull.progress_timeout = Duration::from_millis(300);
    let hidden = bed.folder.path().join("silent.sock");
    let _silent = transfer::bind_shm(&hidden).unwrap();
    (pull.address, pull.endpoints.tcp) = (silent.to_string(), silent.to_string());
    pull.endpoints.shm = hidden.display().to_string();
    assert!(matches!(bed.puller.pull(&pull).await, Err(PullError::Stalled)));
    drop(listener);

    let mut pull = bed.pull(9);
    let gone = crate::support::listen().await.1.to_string();
    (pull.address, pull.endpoints.tcp, pull.endpoints.shm) = (gone.clone(), gone, "/nowhere".into());
    assert!(matches!(bed.puller.pull(&pull).await, Err(PullError::PeerLost(_))));

    let mut pull = bed.pull(9);
    pull.deadline = Instant::now() + Duration::from_millis(50);
    let (_offer, _computing) = bed.offer(9);
    assert!(matches!(bed.puller.pull(&pull).await, Err(PullError::Deadline)));
}

async fn a_waiting_reader_hears_the_heartbeat(kind: TransportKind) {
    let bed = Bed::new(kind, 256).await;
    let (offer, computing) = bed.offer(9);
    let mut pull = bed.pull(9);
    pull.progress_timeout = CONFIG.heartbeat * 4;
    let compute = async {
        tokio::time::sleep(pull.progress_timeout * 3).await;
        computing.publish_all();
        offer.finish(handoff(9));
        offer.ended().await
    };
    let (pulled, _) = tokio::join!(bed.puller.pull(&pull), compute);
    pulled.unwrap();
}

fn fetch_request(pull: &Pull) -> wire::FetchRequest {
    let context = rpc::RequestContext {
        request: pull.request,
        worker: pull.peer.clone(),
        owner_epoch: pull.owner_epoch,
        deadline: Duration::from_secs(60),
        trace: pull.trace.clone(),
        choice: 0,
    };
    wire::FetchRequest {
        context: Some(rpc::convert::write_context(&context)),
        reader: Some(rpc::convert::write_worker_ref(&pull.reader)),
        compatibility: Some(rpc::convert::write_compatibility(&pull.compatibility)),
        only: vec![],
        expected_block_hashes: pull.hashes.iter().map(|h| h.0.to_vec().into()).collect(),
        checksum: wire::ChecksumKind::Xxh364.into(),
        note: None,
        n_blocks_here: 0,
    }
}

async fn refusal(bed: &Bed, pull: &Pull) -> Failure {
    match bed.puller.pull(pull).await {
        Err(PullError::Refused(failure)) => failure,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

async fn until(holds: impl Fn() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
