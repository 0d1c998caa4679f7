//! Any request to the admin API, for a fuzz target and the replay of its corpus.
//!
//! The dispatch thread behind it is real, with a small device and one session. It must answer after every request.

use std::sync::Arc;

use axum::http::StatusCode;
use device::{DeviceSpec, Emulated};
use probe::Probe;
use runtime::{DeviceHandle, DeviceLoop, Limits};
use sched::PolicyConfig;
use session::{Client, DeviceFacts, Doorbell, Layout, local};
use tokio::sync::mpsc;

use crate::admin;
use crate::ledger::Ledger;
use crate::tenants::Doors;
use crate::watch::Watch;

const LAYOUT: Layout = Layout {
    ring_bytes: 64 << 10,
    arena_bytes: 1 << 20,
    staging_block_bytes: 16 << 10,
    staging_blocks: 8,
    reply_slots: 64,
};

/// A daemon without its sockets.
pub struct Admin {
    probe: Probe,
    handle: DeviceHandle,
    _client: Client,
}

impl Admin {
    /// Starts its dispatch thread.
    ///
    /// # Panics
    /// If the system refuses it.
    pub fn start() -> Self {
        let doorbell = Doorbell::new().expect("an eventfd");
        let bell = doorbell.clone();
        let spec: DeviceSpec = "Ascend910B3:timing:hbm=0.0625".parse().expect("a spec");
        let device = Emulated::new(spec.emulated(Arc::new(move || bell.ring()))).expect("a device");
        let policy = PolicyConfig::default();
        let handle = DeviceLoop::spawn(Box::new(device), policy, Limits::default(), doorbell.clone())
            .expect("a dispatch thread");
        let facts = DeviceFacts { soc_name: "Ascend910B3".into(), hbm_bytes: 0, device_index: 0, epoch: 1 };
        let (client, server) = local(LAYOUT, doorbell, facts.clone()).expect("shared memory");
        handle.attach(server).expect("room");
        let ledger = Ledger::start(handle.clone(), None).expect("a thread");
        let watch = Watch::start(handle.clone()).expect("a thread");
        let doors = Doors::new(
            None,
            (Doorbell::new().expect("an eventfd"), facts, 1),
            handle.clone(),
            watch,
            mpsc::channel(1).0,
        );
        let router = || (admin::router(admin::Admin::new(handle.clone(), ledger, doors)), admin::paths());
        Self { probe: Probe::new(router), handle, _client: client }
    }

    /// Sends the request that `bytes` make; see [`Probe::check`].
    ///
    /// # Panics
    /// If a promise is broken.
    pub fn check(&self, bytes: &[u8]) -> Option<StatusCode> {
        let status = self.probe.check(bytes);
        assert!(self.handle.is_running(), "the dispatch thread has ended");
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpus_of_admin_requests_replays() {
        let admin = Admin::start();
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/daemon_admin");
        let replayed = wire::testing::replay(seeds.as_ref(), |bytes| {
            admin.check(bytes);
        });
        assert!(replayed >= 10, "{replayed} seeds");
    }

    #[test]
    fn every_route_refuses_nonsense_without_a_fault() {
        let admin = Admin::start();
        for path in 0..admin.probe.paths().len() as u8 {
            for method in 0..7 {
                for rest in ["", "?seconds=x&after=-1&mib=0", "?%ff=%zz\n", "\n{", "\n[]", "\n{\"name\":{}}", "\n\u{0}"]
                {
                    admin.check(&[&[method, b' ', path], rest.as_bytes()].concat());
                }
            }
        }
    }
}
