//! One lazily connected channel per peer.

use std::time::Duration;

use tonic::transport::{Channel, Endpoint};
use types::Failure;

use super::Limits;

/// A peer that does not accept within this time is unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A dead peer is noticed within the sum of the two, busy or idle.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Headers and trailers, in which error details travel, bytes.
pub(super) const HEADER_LIST_MAX: u32 = 32 << 10;

/// A channel to `address` (`host:port`). It connects at the first call, and again after a loss.
/// Must be called inside a tokio runtime.
///
/// # Errors
/// The address is malformed.
pub fn channel(address: &str, limits: &Limits) -> Result<Channel, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Failure::invalid("address", "an address must be host:port"))?;
    if endpoint.uri().port_u16().is_none() {
        return Err(Failure::invalid("address", "an address must be host:port"));
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .initial_stream_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame_bytes)
        .http2_max_header_list_size(HEADER_LIST_MAX)
        .connect_lazy())
}
