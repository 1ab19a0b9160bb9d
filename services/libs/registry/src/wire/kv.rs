//! The key-value service.

use etcd_client::proto::{
    PbCompactionRequest, PbCompactionResponse, PbDeleteRequest, PbDeleteResponse, PbKvService, PbPutRequest,
    PbPutResponse, PbRangeRequest, PbRangeResponse, PbRangeStreamResponse, PbTxnRequest, PbTxnResponse,
};
use futures::stream::Empty;
use tonic::{Request, Response, Status};

use super::{convert, header};
use crate::memory::{KeyValue, MemoryStore, Op, OpResult};

pub(super) struct Service {
    pub(super) store: MemoryStore,
}

#[tonic::async_trait]
impl PbKvService for Service {
    type RangeStreamStream = Empty<Result<PbRangeStreamResponse, Status>>;

    async fn range(&self, request: Request<PbRangeRequest>) -> Result<Response<PbRangeResponse>, Status> {
        let mut request = request.into_inner();
        let range = convert::range(std::mem::take(&mut request.key), std::mem::take(&mut request.range_end))?;
        let (found, revision) = self.store.range(&range, request.revision).map_err(convert::status)?;
        let count = found.len() as i64;
        let (kvs, more) = select(found, &request);
        let kvs = kvs.into_iter().map(convert::key_value).collect();
        Ok(Response::new(PbRangeResponse { header: header(revision), kvs, more, count }))
    }

    async fn range_stream(&self, _: Request<PbRangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        Err(Status::unimplemented("streamed ranges are not served here"))
    }

    async fn put(&self, request: Request<PbPutRequest>) -> Result<Response<PbPutResponse>, Status> {
        let request = request.into_inner();
        let prev_kv = request.prev_kv;
        let put = Op::Put(convert::put(request)?);
        let mut done = self.store.transact(&[], &[put], &[]).map_err(convert::status)?;
        let prev = match done.results.pop() {
            Some(OpResult::Put(prev)) => prev,
            _ => None,
        };
        let response = convert::put_response(prev, prev_kv);
        Ok(Response::new(PbPutResponse { header: header(done.revision), ..response }))
    }

    async fn delete_range(&self, request: Request<PbDeleteRequest>) -> Result<Response<PbDeleteResponse>, Status> {
        let request = request.into_inner();
        let range = convert::range(request.key, request.range_end)?;
        let (revision, deleted) = self.store.delete(&range).map_err(convert::status)?;
        let response = convert::delete_response(deleted, request.prev_kv);
        Ok(Response::new(PbDeleteResponse { header: header(revision), ..response }))
    }

    async fn txn(&self, request: Request<PbTxnRequest>) -> Result<Response<PbTxnResponse>, Status> {
        let request = request.into_inner();
        let compares = request.compare.into_iter().map(convert::compare).collect::<Result<Vec<_>, _>>()?;
        let ops = |ops: Vec<_>| ops.into_iter().map(convert::op).collect::<Result<Vec<_>, _>>();
        let (success, success_prev): (Vec<_>, Vec<_>) = ops(request.success)?.into_iter().unzip();
        let (failure, failure_prev): (Vec<_>, Vec<_>) = ops(request.failure)?.into_iter().unzip();
        let done = self.store.transact(&compares, &success, &failure).map_err(convert::status)?;
        let prev = if done.succeeded { success_prev } else { failure_prev };
        Ok(Response::new(PbTxnResponse {
            header: header(done.revision),
            succeeded: done.succeeded,
            responses: done
                .results
                .into_iter()
                .zip(prev)
                .map(|(r, prev)| convert::op_result(r, prev, done.revision))
                .collect(),
        }))
    }

    async fn compact(&self, request: Request<PbCompactionRequest>) -> Result<Response<PbCompactionResponse>, Status> {
        self.store.compact(request.into_inner().revision).map_err(convert::status)?;
        Ok(Response::new(PbCompactionResponse { header: header(self.store.revision()) }))
    }
}

/// Filters, sorts and limits as the request says; whether there is more.
fn select(mut found: Vec<KeyValue>, request: &PbRangeRequest) -> (Vec<KeyValue>, bool) {
    if request.count_only {
        return (Vec::new(), false);
    }
    let within = |n: i64, min: i64, max: i64| (min == 0 || n >= min) && (max == 0 || n <= max);
    found.retain(|kv| {
        within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
            && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
    });
    match request.sort_target {
        1 => found.sort_by_key(|kv| kv.version),
        2 => found.sort_by_key(|kv| kv.create_revision),
        3 => found.sort_by_key(|kv| kv.mod_revision),
        4 => found.sort_by(|a, b| a.value.cmp(&b.value)),
        _ => {}
    }
    const DESCEND: i32 = 2;
    if request.sort_order == DESCEND {
        found.reverse();
    }
    let limit = usize::try_from(request.limit).unwrap_or(0);
    let more = limit > 0 && found.len() > limit;
    if more {
        found.truncate(limit);
    }
    if request.keys_only {
        found.iter_mut().for_each(|kv| kv.value.clear());
    }
    (found, more)
}
