//! One attempt to serve a choice: a decode call and a prefill call, started together.

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use routing::Work;
use rpc::worker::{DecodeCall, DecodeEvent, PrefillCall, PrefillEvent, PullFrom, WorkerApi as _, WorkerClient};
use rpc::{EventStream, RequestContext};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use types::{Failure, PhaseTimes, Token, TokenId};

use super::route::{Placement, Placing};
use super::{Pipeline, Request, Tasks};
use crate::cluster::{Occupancy, Worker};

/// A prompt's blocks are given up when nobody opened a fetch this long after it was computed.
const PREFILL_HOLD: Duration = Duration::from_secs(15);
/// Time for a worker to take a cancellation.
const CANCEL_TIME: Duration = Duration::from_secs(2);

/// The calls of a choice to its workers. Those that are armed are cancelled when this is dropped: their streams by
/// the drop itself, and by an explicit call in case a stream's end is not noticed.
pub(super) struct Legs {
    tasks: Tasks,
    decode: Option<Leg>,
    prefill: Option<Leg>,
    prefill_cut: CancellationToken,
}

struct Leg {
    client: WorkerClient,
    context: RequestContext,
}

impl Leg {
    async fn cancel(mut self) {
        self.context.deadline = CANCEL_TIME;
        let worker = self.context.worker.clone();
        match tokio::time::timeout(CANCEL_TIME, self.client.cancel(self.context, false)).await {
            Ok(Ok(found)) => tracing::debug!(%worker, found, "cancelled"),
            // The worker is gone, or its own deadline for the request ends what is left there.
            Ok(Err(failure)) => tracing::debug!(%worker, %failure, "cancellation was not heard"),
            Err(_) => tracing::debug!(%worker, "cancellation was not answered"),
        }
    }
}

impl Legs {
    pub(super) fn new(tasks: Tasks) -> Self {
        Self { tasks, decode: None, prefill: None, prefill_cut: CancellationToken::new() }
    }

    pub(super) fn arm_decode(&mut self, worker: Worker, context: RequestContext) {
        self.decode = Some(Leg { client: worker.client, context });
    }

    fn arm_prefill(&mut self, worker: Worker, context: RequestContext) {
        self.prefill = Some(Leg { client: worker.client, context });
    }

    /// Nothing is left to be cancelled.
    pub(super) fn disarm(&mut self) {
        self.decode_ended();
        self.prefill = None;
    }

    /// The decode call came to its end.
    pub(super) fn decode_ended(&mut self) {
        self.decode = None;
    }

    /// The blocks have arrived: the prefill call ends by itself.
    pub(super) fn handed_over(&mut self) {
        self.prefill = None;
    }

    /// Cancels the prefill call alone.
    pub(super) fn cancel_prefill(&mut self) {
        self.prefill_cut.cancel();
        let cancel = self.prefill.take().map(Leg::cancel);
        self.spawn(cancel.into_iter().collect());
    }

    /// Cancels and waits until the workers have heard it, so that another attempt finds nothing of this one.
    pub(super) async fn abort(mut self) {
        if self.prefill.is_some() {
            self.prefill_cut.cancel();
        }
        let legs = [self.decode.take(), self.prefill.take()];
        futures::future::join_all(legs.into_iter().flatten().map(Leg::cancel)).await;
    }

    fn spawn(&self, cancels: Vec<impl Future<Output = ()> + Send + 'static>) {
        for cancel in cancels {
            self.tasks.tracker.spawn_on(cancel, &self.tasks.runtime);
        }
    }
}

impl Drop for Legs {
    fn drop(&mut self) {
        if self.prefill.is_some() {
            self.prefill_cut.cancel();
        }
        let legs = [self.decode.take(), self.prefill.take()];
        self.spawn(legs.into_iter().flatten().map(Leg::cancel).collect());
    }
}

/// What prefill gives: the first token.
pub(super) struct First {
    pub(super) token: Token,
    pub(super) cached: u32,
    pub(super) phases: PhaseTimes,
}

/// Why there is no first token from prefill.
pub(super) enum NoFirst {
    /// Nothing was begun: decode waits in vain.
    Refused(Failure),
    /// It was begun: decode will notice and compute the prompt itself.
    Lost(Failure),
}

/// A running attempt.
pub(super) struct Attempt {
    pub(super) decode_worker: Worker,
    pub(super) prefill_worker: Option<Worker>,
    /// `None`: there is no prefill, or its word has come.
    pub(super) first: Option<oneshot::Receiver<Result<First, NoFirst>>>,
    pub(super) decode: EventStream<DecodeEvent>,
    pub(super) legs: Legs,
    /// What the choice is, for those who learn from it.
    pub(super) work: Work,
    /// While the decode worker computes the prompt.
    pub(super) own_prompt: Option<Occupancy>,
    _occupancy: Occupancy,
}

impl Attempt {
    /// Starts both calls. `generated`: what earlier attempts have sent to the client.
    pub(super) fn start(
        pipeline: &Pipeline,
        request: &Request,
        placing: Placing<'_>,
        placement: Placement,
        generated: &[TokenId],
    ) -> Self {
        let Placement { decode, reservation, prefill, work, occupancy, prompt, mut legs } = placement;
        let prefill = prefill.ok();
        let source = prefill.as_ref().map(|prefill| PullFrom {
            prefill: prefill.info.worker.clone(),
            address: prefill.info.kv_address.clone(),
            endpoints: prefill.info.kv_endpoints.clone(),
            compatibility: prefill.info.compatibility.clone().expect("a prefill worker without one is never chosen"),
        });
        let call = DecodeCall {
            reservation,
            prompt: request.prompt.clone(),
            sampling: request.sampling.clone(),
            stop: request.stop.clone(),
            source,
            generated: generated.to_vec(),
            tenant: request.tenant.clone(),
        };
        let context = request.context(&decode.info.worker, placing);
        let client = decode.client.clone();
        let events = async move { client.run_decode(context, call).await };
        let mut own_prompt = Some(prompt);
        let first = prefill.as_ref().map(|prefill| {
            let context = request.context(&prefill.info.worker, placing);
            let call = PrefillCall {
                prompt: request.prompt.clone(),
                sampling: request.sampling.clone(),
                stop: request.stop.clone(),
                reader: decode.info.worker.clone(),
                hold: PREFILL_HOLD,
                tenant: request.tenant.clone(),
            };
            legs.arm_prefill(prefill.clone(), context.clone());
            let (sender, receiver) = oneshot::channel();
            let run = PrefillRun { client: prefill.client.clone(), first: Some(sender), occupancy: own_prompt.take() };
            let cut = legs.prefill_cut.clone();
            pipeline.tasks.tracker.spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = run.run(context, call) => {}
                }
            });
            receiver
        });
        Self {
            decode_worker: decode,
            prefill_worker: prefill,
            first,
            decode: futures::stream::once(events).try_flatten().boxed(),
            legs,
            work,
            own_prompt,
            _occupancy: occupancy,
        }
    }
}

/// Keeps a prefill call open until its hold has ended; dropping it cancels the call.
struct PrefillRun {
    client: WorkerClient,
    first: Option<oneshot::Sender<Result<First, NoFirst>>>,
    occupancy: Option<Occupancy>,
}

impl PrefillRun {
    async fn run(mut self, context: RequestContext, call: PrefillCall) {
        let mut events = match self.client.run_prefill(context, call).await {
            Ok(events) => events,
            Err(failure) => return self.tell(Err(NoFirst::Refused(failure))),
        };
        loop {
            match events.next().await {
                Some(Ok(PrefillEvent::Started { .. })) => {}
                Some(Ok(PrefillEvent::Finished { token, cached, phases })) => {
                    self.occupancy = None;
                    self.tell(Ok(First { token, cached, phases }));
                }
                Some(Ok(PrefillEvent::HoldEnded { cause, bytes })) => {
                    tracing::debug!(?cause, bytes, "hold ended");
                    return self.tell(Err(NoFirst::Lost(rpc::status::cut_off())));
                }
                Some(Err(failure)) => {
                    tracing::debug!(%failure, "prefill call failed");
                    return self.tell(Err(NoFirst::Lost(failure)));
                }
                None => return self.tell(Err(NoFirst::Lost(rpc::status::cut_off()))),
            }
        }
    }

    /// The first word counts; the choice may have gone on without it.
    fn tell(&mut self, word: Result<First, NoFirst>) {
        if let Some(first) = self.first.take() {
            let _ = first.send(word);
        }
    }
}
