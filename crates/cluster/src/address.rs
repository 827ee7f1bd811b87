//! The addresses of a node, as the control plane's state keeps them.

use std::net::SocketAddr;

/// The addresses at which a node is reached, each for one purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// For the control plane of other nodes, and for nodes that join.
    pub cluster: SocketAddr,
    /// For messages between shards and replicas.
    pub peers: SocketAddr,
    /// For clients by the native protocol.
    pub clients: Option<SocketAddr>,
    /// For clients over HTTP.
    pub http: Option<SocketAddr>,
}

impl Addresses {
    /// Returns the texts that the control plane keeps: the first one is that for the control plane.
    #[must_use]
    pub fn to_texts(&self) -> Vec<String> {
        let mut texts = vec![self.cluster.to_string(), format!("peers={}", self.peers)];
        texts.extend(self.clients.map(|address| format!("clients={address}")));
        texts.extend(self.http.map(|address| format!("http={address}")));
        texts
    }

    /// Reads the texts of a node; `None` if one that nodes need is missing or invalid. Texts of an unknown purpose are skipped.
    #[must_use]
    pub fn of_texts(texts: &[String]) -> Option<Self> {
        let cluster = texts.first()?.parse().ok()?;
        let of = |purpose: &str| {
            let mut found = texts.iter().filter_map(|text| text.strip_prefix(purpose)?.strip_prefix('='));
            found.next().and_then(|address| address.parse().ok())
        };
        Some(Self { cluster, peers: of("peers")?, clients: of("clients"), http: of("http") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_as_texts() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let all = Addresses { cluster: at(1), peers: at(2), clients: Some(at(3)), http: Some(at(4)) };
        let few = Addresses { clients: None, http: None, ..all };
        for addresses in [all, few] {
            assert_eq!(Addresses::of_texts(&addresses.to_texts()), Some(addresses));
        }
        assert_eq!(Addresses::of_texts(&["127.0.0.1:1".to_owned()]), None, "the peers' is missing");
        assert_eq!(Addresses::of_texts(&[]), None);
    }
}
