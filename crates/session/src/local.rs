//! Both ends in one process: direct mode.

use crate::client::{Client, Facts};
use crate::doorbell::Doorbell;
use crate::listener::{DeviceFacts, next_session};
use crate::reserve::Reservation;
use crate::server::{Peer, ServerSession};
use crate::shared::Shared;
use std::io;
use wire::control::Layout;

/// A session without a socket: the same shared memory, ring, slots and arena, mapped once. The client is lost when the
/// server end is dropped.
///
/// # Errors
/// If the memory cannot be made or the layout is invalid.
pub fn local(layout: Layout, doorbell: Doorbell, facts: DeviceFacts) -> io::Result<(Client, ServerSession)> {
    layout.check().map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let reservation = Reservation::new(crate::client::VA_BYTES)?;
    let (va_base, va_len) = reservation.range();
    let (shared, _memfd) = Shared::create(layout)?;
    let bell = doorbell.bell()?;
    let client_bell = bell.fd.try_clone()?;
    let session = next_session();
    let peer = Peer {
        pid: std::process::id(),
        uid: rustix::process::getuid().as_raw(),
        process_name: crate::client::own_name(),
        va_base,
        va_len,
    };
    let facts = Facts {
        session,
        epoch: facts.epoch,
        device_index: facts.device_index,
        hbm_bytes: facts.hbm_bytes,
        soc_name: facts.soc_name,
        layout,
    };
    let client = Client::new(facts, shared.clone(), client_bell, reservation, None);
    Ok((client, ServerSession::new(session, peer, shared, bell)))
}
