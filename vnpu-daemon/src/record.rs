//! Decision records over the admin API: a ring that is kept, and the next seconds for whoever asks.
//!
//! What is recorded for one request ends with it, also where the client leaves before: the daemon never goes on recording for
//! nobody. The bytes are put together off the dispatch thread.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use runtime::recording::{RECORD_BYTES_MAX, RecordingSnapshot, Taken};
use runtime::{DeviceHandle, NoAnswer};
use sched::Nanos;
use sched::dispatch::RecordLimits;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Mutex;

use crate::admin::{Admin, Failure, ask, object};

/// Ring where nobody says otherwise: some ten seconds of 50,000 operators a second.
pub const MIB_DEFAULT: u32 = 64;
/// Longest recording for one request.
const SECONDS_MAX: u32 = 600;
/// Length of one where nobody says otherwise.
const SECONDS_DEFAULT: u32 = 5;
const MIB: usize = 1 << 20;
const BUSY: &str = "another request is recording; try again when it is over";
const NS_PER_S: Nanos = 1_000_000_000;

/// One request at a time records for itself.
pub type Turn = Arc<Mutex<()>>;

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Room {
    /// Reach back for so long only.
    seconds: Option<u32>,
    /// Memory.
    mib: Option<u32>,
}

impl Room {
    fn limits(self, span: Nanos) -> Result<RecordLimits, Failure> {
        let mib = self.mib.unwrap_or(MIB_DEFAULT) as usize;
        let most = RECORD_BYTES_MAX / MIB;
        if !(1..=most).contains(&mib) {
            return Err(Failure::bad(format!("mib = {mib}: 1 to {most} are possible")));
        }
        Ok(RecordLimits { bytes_max: mib * MIB, span })
    }

    fn seconds(self) -> Result<Option<Nanos>, Failure> {
        match self.seconds {
            Some(s) if !(1..=SECONDS_MAX).contains(&s) => {
                Err(Failure::bad(format!("seconds = {s}: 1 to {SECONDS_MAX} are possible")))
            }
            other => Ok(other.map(|s| Nanos::from(s) * NS_PER_S)),
        }
    }
}

/// The ring that a daemon starts with.
///
/// # Errors
/// The dispatch thread does not answer.
pub fn start(handle: &DeviceHandle, mib: u32) -> Result<(), NoAnswer> {
    handle.start_record(RecordLimits { bytes_max: mib as usize * MIB, span: Nanos::MAX })
}

/// PUT: keeps a ring from now on.
pub async fn put(State(admin): State<Admin>, body: Bytes) -> Result<Json<RecordingSnapshot>, Failure> {
    let Admin { handle, turn, .. } = admin;
    let room: Room = match body.trim_ascii() {
        b"" => Room::default(),
        body => object(body)
            .and_then(|object| serde_json::from_value(object.into()))
            .map_err(|e| Failure::bad(format!("mib and seconds are possible: {e}")))?,
    };
    let limits = room.limits(room.seconds()?.unwrap_or(Nanos::MAX))?;
    let Ok(_turn) = turn.try_lock() else { return Err(Failure::conflict(BUSY)) };
    let status = ask(handle, move |handle| {
        handle.start_record(limits)?;
        handle.snapshot()
    });
    let recording = status.await?.recording;
    recording.map(Json).ok_or_else(|| Failure::conflict("the recording was ended at once by somebody else"))
}

/// DELETE: keeps nothing any more.
pub async fn delete(State(handle): State<DeviceHandle>) -> Result<StatusCode, Failure> {
    ask(handle, DeviceHandle::stop_record).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Ends a request's own recording, also when the request is dropped.
struct Own(DeviceHandle);

impl Drop for Own {
    fn drop(&mut self) {
        let handle = self.0.clone();
        // A thread that does not answer records for nobody, and is noticed elsewhere.
        tokio::task::spawn_blocking(move || handle.stop_record().is_ok());
    }
}

/// GET: what the ring holds; without one, the next seconds.
pub async fn get(State(admin): State<Admin>, room: Result<Query<Room>, QueryRejection>) -> Result<Response, Failure> {
    let Query(room) = room?;
    let Admin { handle, turn, .. } = admin;
    let (seconds, limits) = (room.seconds()?, room.limits(Nanos::MAX)?);
    let Ok(_turn) = turn.try_lock() else { return Err(Failure::conflict(BUSY)) };
    if let Some(bytes) = ask(handle.clone(), take).await? {
        return Ok(answer(bytes));
    }
    ask(handle.clone(), move |handle| handle.start_record(limits)).await?;
    let own = Own(handle.clone());
    let seconds = seconds.unwrap_or(Nanos::from(SECONDS_DEFAULT) * NS_PER_S);
    tokio::time::sleep(Duration::from_nanos(seconds)).await;
    let bytes = ask(handle, take).await;
    drop(own);
    bytes?.map(answer).ok_or_else(|| Failure::conflict("the recording was ended by somebody else"))
}

fn take(handle: &DeviceHandle) -> Result<Option<Vec<u8>>, NoAnswer> {
    let taken = handle.copy_record()?;
    Ok(taken.map(|Taken { recording, sessions, .. }| {
        let about = json!({ "device": handle.info().label, "sessions": sessions });
        recording.to_bytes(&about.to_string())
    }))
}

fn answer(bytes: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response()
}
