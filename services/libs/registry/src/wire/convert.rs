//! Wire to store and back, with the statuses and messages that etcd uses.

use etcd_client::proto::{
    PbCompare, PbDeleteResponse, PbEvent, PbKeyValue, PbPutRequest, PbPutResponse, PbRangeResponse, PbResponseOp,
    PbTargetUnion, PbTxnOpRequest, PbTxnOpResponse, PbTxnRequestOp,
};
use tonic::Status;

use crate::memory::{
    Compare, CompareOp, CompareTarget, Event, EventKind, KeyRange, KeyValue, Op, OpResult, Put, StoreError,
};

pub(super) fn key_value(kv: KeyValue) -> PbKeyValue {
    PbKeyValue {
        key: kv.key,
        create_revision: kv.create_revision,
        mod_revision: kv.mod_revision,
        version: kv.version,
        value: kv.value,
        lease: kv.lease,
    }
}

pub(super) fn event(event: Event, prev_kv: bool) -> PbEvent {
    let prev = if prev_kv { event.prev.map(key_value) } else { None };
    match event.kind {
        EventKind::Put(kv) => PbEvent { r#type: 0, kv: Some(key_value(kv)), prev_kv: prev },
        EventKind::Delete(key) => {
            let kv = PbKeyValue { key, mod_revision: event.revision, ..PbKeyValue::default() };
            PbEvent { r#type: 1, kv: Some(kv), prev_kv: prev }
        }
    }
}

pub(super) fn range(key: Vec<u8>, end: Vec<u8>) -> Result<KeyRange, Status> {
    if key.is_empty() { Err(status(StoreError::EmptyKey)) } else { Ok(KeyRange::from_wire(key, end)) }
}

pub(super) fn put(request: PbPutRequest) -> Result<Put, Status> {
    if request.ignore_value && !request.value.is_empty() {
        return Err(Status::invalid_argument("etcdserver: value is provided"));
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Status::invalid_argument("etcdserver: lease is provided"));
    }
    Ok(Put {
        key: request.key,
        value: (!request.ignore_value).then_some(request.value),
        lease: (!request.ignore_lease).then_some(request.lease),
    })
}

pub(super) fn compare(compare: PbCompare) -> Result<Compare, Status> {
    let op = match compare.result {
        0 => CompareOp::Equal,
        1 => CompareOp::Greater,
        2 => CompareOp::Less,
        3 => CompareOp::NotEqual,
        _ => return Err(Status::invalid_argument("etcdserver: unknown comparison")),
    };
    // A missing value on the wire is a zero of the named target.
    let target = match (compare.target, compare.target_union) {
        (0, Some(PbTargetUnion::Version(n))) => CompareTarget::Version(n),
        (0, None) => CompareTarget::Version(0),
        (1, Some(PbTargetUnion::CreateRevision(n))) => CompareTarget::CreateRevision(n),
        (1, None) => CompareTarget::CreateRevision(0),
        (2, Some(PbTargetUnion::ModRevision(n))) => CompareTarget::ModRevision(n),
        (2, None) => CompareTarget::ModRevision(0),
        (3, Some(PbTargetUnion::Value(value))) => CompareTarget::Value(value),
        (3, None) => CompareTarget::Value(Vec::new()),
        (4, Some(PbTargetUnion::Lease(n))) => CompareTarget::Lease(n),
        (4, None) => CompareTarget::Lease(0),
        _ => return Err(Status::invalid_argument("etcdserver: comparison's target and value differ")),
    };
    Ok(Compare { range: range(compare.key, compare.range_end)?, target, op })
}

/// An operation of a transaction, and whether its answer names earlier values.
pub(super) fn op(op: PbTxnRequestOp) -> Result<(Op, bool), Status> {
    match op.request {
        Some(PbTxnOpRequest::RequestRange(r)) => Ok((Op::Range(range(r.key, r.range_end)?, r.revision), false)),
        Some(PbTxnOpRequest::RequestPut(r)) => {
            let prev_kv = r.prev_kv;
            Ok((Op::Put(put(r)?), prev_kv))
        }
        Some(PbTxnOpRequest::RequestDeleteRange(r)) => Ok((Op::Delete(range(r.key, r.range_end)?), r.prev_kv)),
        Some(PbTxnOpRequest::RequestTxn(_)) => {
            Err(Status::unimplemented("transactions inside transactions are not served here"))
        }
        None => Err(Status::invalid_argument("etcdserver: empty operation")),
    }
}

pub(super) fn op_result(result: OpResult, prev_kv: bool, revision: i64) -> PbResponseOp {
    let header = super::header(revision);
    let response = match result {
        OpResult::Range(found) => PbTxnOpResponse::ResponseRange(PbRangeResponse {
            header,
            count: found.len() as i64,
            more: false,
            kvs: found.into_iter().map(key_value).collect(),
        }),
        OpResult::Put(prev) => PbTxnOpResponse::ResponsePut(PbPutResponse { header, ..put_response(prev, prev_kv) }),
        OpResult::Delete(deleted) => {
            PbTxnOpResponse::ResponseDeleteRange(PbDeleteResponse { header, ..delete_response(deleted, prev_kv) })
        }
    };
    PbResponseOp { response: Some(response) }
}

pub(super) fn put_response(prev: Option<KeyValue>, prev_kv: bool) -> PbPutResponse {
    PbPutResponse { header: None, prev_kv: prev.filter(|_| prev_kv).map(key_value) }
}

pub(super) fn delete_response(deleted: Vec<KeyValue>, prev_kv: bool) -> PbDeleteResponse {
    PbDeleteResponse {
        header: None,
        deleted: deleted.len() as i64,
        prev_kvs: if prev_kv { deleted.into_iter().map(key_value).collect() } else { Vec::new() },
    }
}

pub(super) fn status(error: StoreError) -> Status {
    match error {
        StoreError::Compacted(_) => Status::out_of_range("etcdserver: mvcc: required revision has been compacted"),
        StoreError::FutureRevision => Status::out_of_range("etcdserver: mvcc: required revision is a future revision"),
        StoreError::LeaseNotFound => Status::not_found("etcdserver: requested lease not found"),
        StoreError::LeaseExists => Status::failed_precondition("etcdserver: lease already exists"),
        StoreError::LeaseTtl => Status::out_of_range("etcdserver: too large lease TTL"),
        StoreError::EmptyKey => Status::invalid_argument("etcdserver: key is not provided"),
        StoreError::KeyNotFound => Status::invalid_argument("etcdserver: key not found"),
        StoreError::DuplicateKey => Status::invalid_argument("etcdserver: duplicate key given in txn request"),
        StoreError::TooLarge => Status::invalid_argument("etcdserver: request is too large"),
        StoreError::Full => Status::resource_exhausted("etcdserver: mvcc: database space exceeded"),
    }
}
