//! The lease service.

use std::pin::Pin;
use std::time::Duration;

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse, PbLeaseLeasesRequest,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseService, PbLeaseStatus,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures::Stream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{convert, header};
use crate::memory::{MemoryStore, StoreError};

pub(super) struct Service {
    pub(super) store: MemoryStore,
    pub(super) shutdown: CancellationToken,
}

#[tonic::async_trait]
impl PbLeaseService for Service {
    type LeaseKeepAliveStream = Pin<Box<dyn Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send>>;

    async fn lease_grant(
        &self,
        request: Request<PbLeaseGrantRequest>,
    ) -> Result<Response<PbLeaseGrantResponse>, Status> {
        let PbLeaseGrantRequest { ttl, id } = request.into_inner();
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let (id, ttl) = self.store.grant(id, ttl).map_err(convert::status)?;
        let header = header(self.store.revision());
        Ok(Response::new(PbLeaseGrantResponse { header, id, ttl: seconds(ttl), error: String::new() }))
    }

    async fn lease_revoke(
        &self,
        request: Request<PbLeaseRevokeRequest>,
    ) -> Result<Response<PbLeaseRevokeResponse>, Status> {
        self.store.revoke(request.into_inner().id).map_err(convert::status)?;
        Ok(Response::new(PbLeaseRevokeResponse { header: header(self.store.revision()) }))
    }

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<PbLeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let (store, shutdown) = (self.store.clone(), self.shutdown.clone());
        let mut requests = request.into_inner();
        let answers = async_stream::try_stream! {
            loop {
                let request = tokio::select! {
                    request = requests.message() => request,
                    () = shutdown.cancelled() => Ok(None),
                };
                let Some(request) = request? else { break };
                // A lease that is gone is no error: it has no time to live.
                let ttl = store.keep_alive(request.id).map_or(0, seconds);
                yield PbLeaseKeepAliveResponse { header: header(store.revision()), id: request.id, ttl };
            }
        };
        Ok(Response::new(Box::pin(answers)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<PbLeaseTimeToLiveRequest>,
    ) -> Result<Response<PbLeaseTimeToLiveResponse>, Status> {
        let request = request.into_inner();
        let header = header(self.store.revision());
        let response = match self.store.lease(request.id) {
            Ok(lease) => PbLeaseTimeToLiveResponse {
                header,
                id: request.id,
                ttl: seconds(lease.remaining),
                granted_ttl: seconds(lease.granted),
                keys: if request.keys { lease.keys } else { Vec::new() },
            },
            Err(StoreError::LeaseNotFound) => {
                PbLeaseTimeToLiveResponse { header, id: request.id, ttl: -1, ..Default::default() }
            }
            Err(error) => return Err(convert::status(error)),
        };
        Ok(Response::new(response))
    }

    async fn lease_leases(&self, _: Request<PbLeaseLeasesRequest>) -> Result<Response<PbLeaseLeasesResponse>, Status> {
        let leases = self.store.leases().into_iter().map(|id| PbLeaseStatus { id }).collect();
        Ok(Response::new(PbLeaseLeasesResponse { header: header(self.store.revision()), leases }))
    }
}

fn seconds(time: Duration) -> i64 {
    i64::try_from(time.as_secs()).unwrap_or(i64::MAX)
}
