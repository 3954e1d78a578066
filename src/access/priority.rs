//! Who comes first where an upstream's quota is scarce.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Payer, Wild};

/// Clients that may use the reserve: by network, or by who has logged in. Nobody by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Priority {
    pub networks: Vec<IpNet>,
    /// As identities are written: `alice`, `certificate:ci-*`, `gitlab:corp/*`.
    pub identities: Vec<Wild>,
}

impl Priority {
    pub fn is_nobody(&self) -> bool {
        self.networks.is_empty() && self.identities.is_empty()
    }

    /// Whoever has logged in is included by the network it comes from, too.
    pub fn includes(&self, payer: &Payer, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let by_name = match payer {
            Payer::Identity(name) => self.identities.iter().any(|wild| wild.matches(name)),
            Payer::Address(_) => false,
        };
        by_name || self.networks.iter().any(|network| network.contains(&address))
    }

    /// The entries, as they are written.
    pub fn texts(&self) -> Vec<String> {
        let networks = self.networks.iter().map(ToString::to_string);
        networks.chain(self.identities.iter().map(ToString::to_string)).collect()
    }
}
