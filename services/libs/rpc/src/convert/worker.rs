//! Messages of the control plane.

use proto::v1 as wire;
use types::{Accounting, Failure, KvEndpoints, Load, WorkerRef};

use super::*;
use crate::RequestContext;
use crate::worker::{
    DecodeCall, DecodeEvent, HoldCause, PrefillCall, PrefillEvent, PullFrom, ReservationId, Reserve, Reserved,
};

/// Shortest and longest pause between load reports, milliseconds.
const REPORT_MS: std::ops::RangeInclusive<u32> = 10..=60_000;

pub(crate) fn read_reserve(call: wire::ReserveRequest) -> Result<(RequestContext, Reserve), Failure> {
    let reserve =
        Reserve { n_prompt: call.n_prompt_tokens, max_new: call.max_new_tokens, hold: read_duration_ms(call.hold_ms) };
    if reserve.n_prompt == 0 {
        return Err(Failure::invalid("n_prompt_tokens", "a prompt has at least one token"));
    }
    Ok((read_context(call.context)?, reserve))
}

pub(crate) fn write_reserve(context: &RequestContext, call: &Reserve) -> wire::ReserveRequest {
    wire::ReserveRequest {
        context: Some(write_context(context)),
        n_prompt_tokens: call.n_prompt,
        max_new_tokens: call.max_new,
        hold_ms: write_duration_ms(call.hold),
    }
}

pub(crate) fn read_reserved(reserved: wire::ReserveResponse) -> Result<Reserved, Failure> {
    Ok(Reserved {
        id: read_reservation(&reserved.reservation_id)?,
        n_blocks: reserved.n_blocks,
        worker: read_worker_ref(reserved.worker, "worker")?,
    })
}

pub(crate) fn write_reserved(reserved: &Reserved) -> wire::ReserveResponse {
    wire::ReserveResponse {
        reservation_id: reserved.id.to_vec().into(),
        n_blocks: reserved.n_blocks,
        worker: Some(write_worker_ref(&reserved.worker)),
    }
}

pub(crate) fn read_prefill_call(call: wire::RunPrefillRequest) -> Result<(RequestContext, PrefillCall), Failure> {
    let context = read_context(call.context)?;
    let call = PrefillCall {
        prompt: read_prompt(call.prompt)?.into(),
        sampling: read_sampling(call.sampling)?,
        stop: read_stop(call.stop)?,
        reader: read_worker_ref(call.reader, "reader")?,
        hold: read_duration_ms(call.hold_ms),
        tenant: name(call.tenant, "tenant")?,
    };
    Ok((context, call))
}

pub(crate) fn write_prefill_call(context: &RequestContext, call: &PrefillCall) -> wire::RunPrefillRequest {
    wire::RunPrefillRequest {
        context: Some(write_context(context)),
        prompt: call.prompt.to_vec(),
        sampling: Some(write_sampling(&call.sampling)),
        stop: Some(write_stop(&call.stop)),
        reader: Some(write_worker_ref(&call.reader)),
        hold_ms: write_duration_ms(call.hold),
        tenant: call.tenant.clone(),
    }
}

pub(crate) fn read_prefill_event(event: wire::RunPrefillResponse) -> Result<PrefillEvent, Failure> {
    use wire::run_prefill_response::Event;
    Ok(match required(event.event, "event")? {
        Event::Started(started) => PrefillEvent::Started { phases: read_phases(started.phases)? },
        Event::Finished(finished) => PrefillEvent::Finished {
            token: read_token(finished.first_token, "first_token")?,
            cached: finished.n_cached_tokens,
            phases: read_phases(finished.phases)?,
        },
        Event::HoldEnded(ended) => {
            PrefillEvent::HoldEnded { cause: read_hold_cause(ended.cause())?, bytes: ended.bytes_sent }
        }
    })
}

pub(crate) fn write_prefill_event(worker: &WorkerRef, event: &PrefillEvent) -> wire::RunPrefillResponse {
    use wire::run_prefill_response::Event;
    let event = match event {
        PrefillEvent::Started { phases } => Event::Started(wire::PrefillStarted {
            worker: Some(write_worker_ref(worker)),
            phases: write_phases(phases),
        }),
        PrefillEvent::Finished { token, cached, phases } => Event::Finished(wire::PrefillFinished {
            first_token: Some(write_token(token)),
            n_cached_tokens: *cached,
            phases: write_phases(phases),
        }),
        PrefillEvent::HoldEnded { cause, bytes } => {
            Event::HoldEnded(wire::HoldEnded { cause: write_hold_cause(*cause).into(), bytes_sent: *bytes })
        }
    };
    wire::RunPrefillResponse { event: Some(event) }
}

pub(crate) fn read_decode_call(call: wire::RunDecodeRequest) -> Result<(RequestContext, DecodeCall), Failure> {
    let context = read_context(call.context)?;
    let call = DecodeCall {
        reservation: read_reservation(&call.reservation_id)?,
        prompt: read_prompt(call.prompt)?.into(),
        sampling: read_sampling(call.sampling)?,
        stop: read_stop(call.stop)?,
        source: call.source.map(read_source).transpose()?,
        generated: bounded(call.generated, TOKENS_MAX, "generated")?,
        tenant: name(call.tenant, "tenant")?,
    };
    Ok((context, call))
}

pub(crate) fn write_decode_call(context: &RequestContext, call: &DecodeCall) -> wire::RunDecodeRequest {
    wire::RunDecodeRequest {
        context: Some(write_context(context)),
        reservation_id: call.reservation.to_vec().into(),
        prompt: call.prompt.to_vec(),
        sampling: Some(write_sampling(&call.sampling)),
        stop: Some(write_stop(&call.stop)),
        source: call.source.as_ref().map(|source| wire::PullSource {
            prefill: Some(write_worker_ref(&source.prefill)),
            address: source.address.clone(),
            compatibility: Some(write_compatibility(&source.compatibility)),
            endpoints: Some(wire::KvEndpoints {
                tcp: source.endpoints.tcp.clone(),
                shm: source.endpoints.shm.clone(),
                host: source.endpoints.host.clone(),
            }),
        }),
        generated: call.generated.clone(),
        tenant: call.tenant.clone(),
    }
}

pub(crate) fn read_decode_event(event: wire::RunDecodeResponse) -> Result<DecodeEvent, Failure> {
    use wire::run_decode_response::Event;
    Ok(match required(event.event, "event")? {
        Event::Handoff(handoff) => DecodeEvent::Handoff {
            bytes: handoff.bytes,
            n_blocks: handoff.n_blocks,
            transport: name(handoff.transport, "transport")?,
            recomputed: handoff.recomputed,
            phases: read_phases(handoff.phases)?,
        },
        Event::Token(token) => DecodeEvent::Token(read_token(Some(token), "token")?),
        Event::Finished(finished) => DecodeEvent::Finished {
            n_tokens: finished.n_tokens,
            cached: finished.n_cached_tokens,
            phases: read_phases(finished.phases)?,
        },
    })
}

pub(crate) fn write_decode_event(event: &DecodeEvent) -> wire::RunDecodeResponse {
    use wire::run_decode_response::Event;
    let event = match event {
        DecodeEvent::Handoff { bytes, n_blocks, transport, recomputed, phases } => {
            Event::Handoff(wire::HandoffFinished {
                bytes: *bytes,
                n_blocks: *n_blocks,
                transport: transport.clone(),
                recomputed: *recomputed,
                phases: write_phases(phases),
            })
        }
        DecodeEvent::Token(token) => Event::Token(write_token(token)),
        DecodeEvent::Finished { n_tokens, cached, phases } => Event::Finished(wire::DecodeFinished {
            n_tokens: *n_tokens,
            n_cached_tokens: *cached,
            phases: write_phases(phases),
        }),
    };
    wire::RunDecodeResponse { event: Some(event) }
}

pub(crate) fn read_load_request(call: wire::LoadReportRequest) -> Result<(WorkerRef, std::time::Duration), Failure> {
    let millis = call.min_interval_ms.clamp(*REPORT_MS.start(), *REPORT_MS.end());
    Ok((read_worker_ref(call.worker, "worker")?, read_duration_ms(millis.into())))
}

pub(crate) fn read_load(report: wire::LoadReportResponse) -> Result<(WorkerRef, Load), Failure> {
    let load = Load {
        n_waiting: report.n_waiting,
        n_waiting_tokens: report.n_waiting_tokens,
        n_running: report.n_running,
        blocks_total: report.blocks_total,
        blocks_free: report.blocks_free,
        draining: report.draining,
        steps: report.steps,
    };
    Ok((read_worker_ref(report.worker, "worker")?, load))
}

pub(crate) fn write_load(worker: &WorkerRef, load: &Load) -> wire::LoadReportResponse {
    wire::LoadReportResponse {
        worker: Some(write_worker_ref(worker)),
        n_waiting: load.n_waiting,
        n_running: load.n_running,
        blocks_total: load.blocks_total,
        blocks_free: load.blocks_free,
        n_waiting_tokens: load.n_waiting_tokens,
        draining: load.draining,
        steps: load.steps,
    }
}

pub(crate) fn read_accounting(accounting: wire::GetAccountingResponse) -> Accounting {
    Accounting {
        total: accounting.blocks_total,
        free: accounting.blocks_free,
        request: accounting.blocks_request,
        transfer: accounting.blocks_transfer,
        cached: accounting.blocks_cached,
        n_requests: accounting.n_requests,
        n_streams: accounting.n_streams,
    }
}

pub(crate) fn write_accounting(accounting: &Accounting) -> wire::GetAccountingResponse {
    wire::GetAccountingResponse {
        blocks_total: accounting.total,
        blocks_free: accounting.free,
        blocks_request: accounting.request,
        blocks_transfer: accounting.transfer,
        blocks_cached: accounting.cached,
        n_requests: accounting.n_requests,
        n_streams: accounting.n_streams,
    }
}

fn read_reservation(id: &[u8]) -> Result<ReservationId, Failure> {
    id.try_into().map_err(|_| Failure::invalid("reservation_id", "reservation_id must have 16 bytes"))
}

fn read_prompt(prompt: Vec<u32>) -> Result<Vec<u32>, Failure> {
    if prompt.is_empty() {
        return Err(Failure::invalid("prompt", "a prompt has at least one token"));
    }
    bounded(prompt, TOKENS_MAX, "prompt")
}

fn read_source(source: wire::PullSource) -> Result<PullFrom, Failure> {
    Ok(PullFrom {
        prefill: read_worker_ref(source.prefill, "source.prefill")?,
        address: name(source.address, "source.address")?,
        endpoints: read_endpoints(source.endpoints.unwrap_or_default())?,
        compatibility: read_compatibility(source.compatibility, "source.compatibility")?,
    })
}

fn read_endpoints(endpoints: wire::KvEndpoints) -> Result<KvEndpoints, Failure> {
    Ok(KvEndpoints {
        tcp: name(endpoints.tcp, "source.endpoints.tcp")?,
        shm: name(endpoints.shm, "source.endpoints.shm")?,
        host: name(endpoints.host, "source.endpoints.host")?,
    })
}

fn read_hold_cause(cause: wire::hold_ended::Cause) -> Result<HoldCause, Failure> {
    match cause {
        wire::hold_ended::Cause::Fetched => Ok(HoldCause::Fetched),
        wire::hold_ended::Cause::Cancelled => Ok(HoldCause::Cancelled),
        wire::hold_ended::Cause::Expired => Ok(HoldCause::Expired),
        wire::hold_ended::Cause::Unspecified => Err(Failure::invalid("cause", "cause is not known")),
    }
}

fn write_hold_cause(cause: HoldCause) -> wire::hold_ended::Cause {
    match cause {
        HoldCause::Fetched => wire::hold_ended::Cause::Fetched,
        HoldCause::Cancelled => wire::hold_ended::Cause::Cancelled,
        HoldCause::Expired => wire::hold_ended::Cause::Expired,
    }
}
