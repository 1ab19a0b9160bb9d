//! Settings of a worker process.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use types::KvEndpoints;

/// Settings that prefill and decode share.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// Name in the cluster; one living process has it at a time.
    pub id: String,
    /// Served model's name.
    pub model: String,
    /// Control plane; port 0: any.
    pub rpc_listen: SocketAddr,
    /// KV data; `None`: not served.
    pub kv_listen: Option<SocketAddr>,
    /// Where others reach KV data besides gRPC, by servers that the role brings along.
    pub kv_endpoints: KvEndpoints,
    /// Admin port; `None`: not served.
    pub admin_listen: Option<SocketAddr>,
    /// `host:port` under which others reach the control plane; `None`: as bound.
    pub rpc_advertise: Option<String>,
    /// `host:port` under which others reach the KV data; `None`: as bound.
    pub kv_advertise: Option<String>,
    /// At shutdown, running requests may go on this long.
    pub drain_grace: Duration,
}

/// A setting that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct ConfigError {
    /// Which.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl NodeConfig {
    /// On free ports of the loopback interface, without an admin port.
    pub fn loopback(id: impl Into<String>, model: impl Into<String>) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            id: id.into(),
            model: model.into(),
            rpc_listen: any,
            kv_listen: None,
            kv_endpoints: KvEndpoints::default(),
            admin_listen: None,
            rpc_advertise: None,
            kv_advertise: None,
            drain_grace: Duration::from_secs(30),
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let bad = |field, reason| Err(ConfigError { field, reason });
        if self.id.is_empty() {
            return bad("id", "must not be empty");
        }
        if self.model.is_empty() {
            return bad("model", "must not be empty");
        }
        let listeners =
            [("rpc", &self.rpc_advertise, Some(self.rpc_listen)), ("kv", &self.kv_advertise, self.kv_listen)];
        for (plane, advertise, listen) in listeners {
            let everywhere = listen.is_some_and(|address| address.ip().is_unspecified());
            if everywhere && advertise.is_none() {
                let field = if plane == "rpc" { "rpc_advertise" } else { "kv_advertise" };
                return bad(field, "is needed when listening on all interfaces: others cannot call 0.0.0.0");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_setting_that_cannot_be() {
        let good = NodeConfig::loopback("d0", "m");
        assert_eq!(good.validate(), Ok(()));
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let cases: [(&str, NodeConfig); 4] = [
            ("id", NodeConfig { id: String::new(), ..good.clone() }),
            ("model", NodeConfig { model: String::new(), ..good.clone() }),
            ("rpc_advertise", NodeConfig { rpc_listen: everywhere, ..good.clone() }),
            ("kv_advertise", NodeConfig { kv_listen: Some(everywhere), ..good.clone() }),
        ];
        for (field, config) in cases {
            assert_eq!(config.validate().unwrap_err().field, field);
        }
        let named = NodeConfig { rpc_listen: everywhere, rpc_advertise: Some("host:1".into()), ..good };
        assert_eq!(named.validate(), Ok(()));
    }
}
