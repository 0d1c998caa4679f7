//! Where an engine is: a `host:port` whose name is looked up again at every look at the engine.
//!
//! In a network of containers a program that starts again may have another address under its old name, and while it is down
//! its name may be unknown. So a gateway starts without an engine's address and follows it when it moves: nobody has to restart
//! the gateway because an engine was restarted.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pingora_core::protocols::TcpKeepalive;
use pingora_core::upstreams::peer::HttpPeer;

use crate::config::Timeouts;

/// A machine that is gone without a word is noticed after about `idle` and `count` times `interval`: an answer that it broke off
/// ends then, not at the end of the time between two pieces.
const KEEPALIVE: TcpKeepalive = TcpKeepalive {
    idle: Duration::from_secs(10),
    interval: Duration::from_secs(5),
    count: 3,
    user_timeout: Duration::from_secs(25),
};

/// Where somebody listens.
pub struct Place {
    authority: String,
    is_name: bool,
    /// The connector's options, with an address that is nobody's until one is known.
    options: HttpPeer,
    found: RwLock<Option<Arc<HttpPeer>>>,
}

impl Place {
    /// Looks `authority` up; `with` sets what the connector wants to know beside the address.
    ///
    /// # Errors
    /// If it is no `host:port`. A name that is not known now is not an error: it may be later.
    pub fn of(authority: &str, timeouts: &Timeouts, with: impl FnOnce(&mut HttpPeer)) -> Result<Self, String> {
        let parts = authority.rsplit_once(':').filter(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if parts.is_none() {
            return Err(format!("`{authority}` is no host:port, as in 127.0.0.1:8000"));
        }
        let mut options = HttpPeer::new(SocketAddr::from(([0, 0, 0, 0], 0)), false, String::new());
        options.options.connection_timeout = Some(Timeouts::of(timeouts.connect_ms));
        options.options.tcp_keepalive = Some(KEEPALIVE);
        with(&mut options);
        let is_name = authority.parse::<SocketAddr>().is_err();
        let place = Self { authority: authority.to_owned(), is_name, options, found: RwLock::new(None) };
        place.move_to(authority.to_socket_addrs().map(Iterator::collect).unwrap_or_default());
        if place.peer().is_none() {
            tracing::warn!(authority, "nobody knows this name yet; it is looked up again");
        }
        Ok(place)
    }

    /// What it is called: `host:port`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// For the connector; `None` while no address is known.
    pub fn peer(&self) -> Option<Arc<HttpPeer>> {
        self.found.read().clone()
    }

    /// Looks the name up again.
    pub async fn look_up(&self, time_max: Duration) {
        if !self.is_name {
            return;
        }
        let asked = tokio::time::timeout(time_max, tokio::net::lookup_host(self.authority.as_str())).await;
        if let Ok(Ok(addresses)) = asked {
            self.move_to(addresses.collect());
        }
    }

    fn move_to(&self, addresses: Vec<SocketAddr>) {
        let now = self.peer().map(|peer| peer._address.as_inet().copied());
        let Some(address) = choose(now.flatten(), &addresses) else { return };
        let mut peer = self.options.clone();
        peer._address = address.into();
        *self.found.write() = Some(Arc::new(peer));
    }
}

/// Where to go, if elsewhere than `now`: the first address, unless `now` is still one of them. A name that is not known at the
/// moment says nothing: whoever is at the old address may still be there.
fn choose(now: Option<SocketAddr>, addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let first = *addresses.first()?;
    (!now.is_some_and(|now| addresses.contains(&now))).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 8000))
    }

    #[test]
    fn follows_a_name_that_moves_and_stays_while_it_may() {
        for (now, addresses, then) in [
            (None, vec![], None),
            (None, vec![at(1), at(2)], Some(at(1))),
            (Some(at(1)), vec![], None),
            (Some(at(2)), vec![at(1), at(2)], None),
            (Some(at(3)), vec![at(1), at(2)], Some(at(1))),
        ] {
            assert_eq!(choose(now, &addresses), then, "{now:?} {addresses:?}");
        }
    }

    #[tokio::test]
    async fn name_that_is_not_known_yet_is_no_mistake() {
        let timeouts = Timeouts::default();
        let place = Place::of("nobody.invalid:8000", &timeouts, |_| ()).unwrap();
        assert!(place.peer().is_none());
        place.move_to(vec![at(1)]);
        place.look_up(Duration::from_secs(5)).await;
        assert_eq!(place.peer().unwrap()._address.as_inet(), Some(&at(1)));
        for wrong in ["nowhere", ":80", "host:", "host:99999", "host:http"] {
            assert!(Place::of(wrong, &timeouts, |_| ()).is_err(), "{wrong}");
        }
    }
}
