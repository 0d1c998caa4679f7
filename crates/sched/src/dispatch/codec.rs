//! Bytes of a decision record: a tag and its fields, whole numbers as LEB128, times as the difference to the one before.

use super::record::{Aside, Entry};
use super::{Action, EventKey, FlagKey, HintInput, HintKind, Item, Label, SessionParams, StreamKey, TenantParams};
use crate::{Demand, Nanos, Phase, PolicyConfig};

/// Bytes that are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct Malformed {
    /// Where.
    pub at: usize,
    /// What was expected.
    pub what: &'static str,
}

/// Writes entries behind each other.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    time: Nanos,
}

impl Writer {
    /// The first entry's time is a difference to `time`.
    pub fn new(time: Nanos, capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity), time }
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Time of the last entry.
    pub fn time(&self) -> Nanos {
        self.time
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn whole(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    fn float(&mut self, value: f64) {
        self.raw(&value.to_bits().to_le_bytes());
    }

    /// Callers may pass a time that is late; most pass one that is not.
    fn put_time(&mut self, now: Nanos) {
        let step = now.wrapping_sub(self.time) as i64;
        self.whole((step << 1 ^ step >> 63) as u64);
        self.time = now;
    }

    fn stream(&mut self, key: StreamKey) {
        self.whole(key.session);
        self.whole(key.stream.into());
    }

    fn event(&mut self, key: EventKey) {
        self.whole(key.session);
        self.whole(key.event.into());
    }

    fn flag(&mut self, key: FlagKey) {
        self.whole(key.session);
        self.whole(key.flag.into());
    }

    /// Bytes behind their length.
    pub fn text(&mut self, bytes: &[u8]) {
        self.whole(bytes.len() as u64);
        self.raw(bytes);
    }

    /// What stands before the entries: how many came before, their time, the state.
    pub fn head(&mut self, forgotten: u64, state: &[u8]) {
        self.whole(forgotten);
        self.whole(self.time);
        self.text(state);
    }

    fn policy(&mut self, config: &PolicyConfig) {
        self.text(&postcard::to_allocvec(config).unwrap_or_default());
    }

    fn item(&mut self, item: &Item) {
        match *item {
            Item::Op { token, solo, demand, phase, label } => {
                self.whole(phase.index() as u64);
                self.whole(label.number().into());
                self.whole(token);
                self.whole(solo);
                for part in [demand.cube, demand.vector, demand.hbm, demand.static_s, demand.solo_s] {
                    self.float(part);
                }
            }
            Item::RecordEvent(event) => {
                self.whole(4);
                self.event(event);
            }
            Item::ResetEvent(event) => {
                self.whole(5);
                self.event(event);
            }
            Item::WaitEvent(event) => {
                self.whole(6);
                self.event(event);
            }
            Item::Notify { token } => {
                self.whole(7);
                self.whole(token);
            }
            Item::AwaitFlag(flag) => {
                self.whole(8);
                self.flag(flag);
            }
            Item::SetFlag(flag) => {
                self.whole(9);
                self.flag(flag);
            }
            Item::ClearFlag(flag) => {
                self.whole(10);
                self.flag(flag);
            }
        }
    }

    fn hint(&mut self, hint: &HintInput) {
        self.whole(hint.request);
        match hint.kind {
            HintKind::Admitted { prompt_tokens, max_tokens, ttft, tpot, priority } => {
                self.whole(0);
                for n in [prompt_tokens.into(), max_tokens.into(), ttft, tpot, priority.into()] {
                    self.whole(n);
                }
            }
            HintKind::PrefillStarted => self.whole(1),
            HintKind::FirstToken => self.whole(2),
            HintKind::Progress { tokens } => {
                self.whole(3);
                self.whole(tokens.into());
            }
            HintKind::Finished => self.whole(4),
            HintKind::Aborted => self.whole(5),
        }
    }

    pub fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::Push(now, key, item) => {
                self.whole(0);
                self.put_time(*now);
                self.stream(*key);
                self.item(item);
            }
            Entry::Step(now) => {
                self.whole(1);
                self.put_time(*now);
            }
            Entry::Complete(now, token) => {
                self.whole(2);
                self.put_time(*now);
                self.whole(*token);
            }
            Entry::Decided(Action::Submit { token, stream }) => {
                self.whole(3);
                self.whole(*token);
                self.stream(*stream);
            }
            Entry::Decided(Action::Done { token }) => {
                self.whole(4);
                self.whole(*token);
            }
            Entry::OpenSession(session, SessionParams { tenant, weight, priority }) => {
                self.whole(5);
                self.whole(*session);
                self.whole((*tenant).into());
                self.whole((*weight).into());
                self.whole((*priority).into());
            }
            Entry::CloseSession(now, session) => {
                self.whole(6);
                self.put_time(*now);
                self.whole(*session);
            }
            Entry::OpenStream(key, priority) => {
                self.whole(7);
                self.stream(*key);
                self.whole((*priority).into());
            }
            Entry::CloseStream(now, key) => {
                self.whole(8);
                self.put_time(*now);
                self.stream(*key);
            }
            Entry::NotifyEvent(now, event, token) => {
                self.whole(9);
                self.put_time(*now);
                self.event(*event);
                self.whole(*token);
            }
            Entry::DestroyEvent(event) => {
                self.whole(10);
                self.event(*event);
            }
            Entry::NotifyDevice(now, session, token) => {
                self.whole(11);
                self.put_time(*now);
                self.whole(*session);
                self.whole(*token);
            }
            Entry::Hint(now, session, hint) => {
                self.whole(12);
                self.put_time(*now);
                self.whole(*session);
                self.hint(hint);
            }
            Entry::ReleaseFlag(now, flag) => {
                self.whole(14);
                self.put_time(*now);
                self.flag(*flag);
            }
            Entry::Press(now, key, on) => {
                self.whole(18);
                self.put_time(*now);
                self.stream(*key);
                self.whole((*on).into());
            }
            Entry::SetPolicy(config) => {
                self.whole(13);
                self.policy(config);
            }
            Entry::SetTenant(tenant, TenantParams { weight, priority, window }) => {
                self.whole(16);
                self.whole((*tenant).into());
                self.whole((*weight).into());
                self.whole((*priority).into());
                self.whole((*window).into());
            }
            Entry::RemoveTenant(tenant) => {
                self.whole(17);
                self.whole((*tenant).into());
            }
            Entry::Aside(Aside { session, label, phase, solo, began, ended }) => {
                self.whole(15);
                self.put_time(*ended);
                self.whole(ended.saturating_sub(*began));
                for n in [*session, label.number().into(), phase.index() as u64, *solo] {
                    self.whole(n);
                }
            }
        }
    }
}

/// Reads what [`Writer`] wrote; anything else is [`Malformed`].
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    time: Nanos,
}

type Read<T> = Result<T, Malformed>;

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, time: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn wrong<T>(&self, what: &'static str) -> Read<T> {
        Err(Malformed { at: self.at, what })
    }

    fn take(&mut self, len: usize) -> Read<&'a [u8]> {
        match self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => self.wrong("ends in the middle of an entry"),
        }
    }

    fn whole(&mut self) -> Read<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        self.wrong("a number of more than 64 bits")
    }

    fn narrow<T: TryFrom<u64>>(&mut self) -> Read<T> {
        let value = self.whole()?;
        T::try_from(value).or_else(|_| self.wrong("a number too large for its field"))
    }

    fn float(&mut self) -> Read<f64> {
        let bytes = self.take(8)?;
        Ok(f64::from_bits(bytes.iter().rev().fold(0, |bits, &b| bits << 8 | u64::from(b))))
    }

    fn time(&mut self) -> Read<Nanos> {
        let step = self.whole()?;
        let step = (step >> 1) as i64 ^ -((step & 1) as i64);
        self.time = self.time.wrapping_add(step as u64);
        Ok(self.time)
    }

    fn stream(&mut self) -> Read<StreamKey> {
        Ok(StreamKey { session: self.whole()?, stream: self.narrow()? })
    }

    fn event(&mut self) -> Read<EventKey> {
        Ok(EventKey { session: self.whole()?, event: self.narrow()? })
    }

    fn flag(&mut self) -> Read<FlagKey> {
        Ok(FlagKey { session: self.whole()?, flag: self.narrow()? })
    }

    /// See [`Writer::text`].
    pub fn text(&mut self) -> Read<&'a str> {
        std::str::from_utf8(self.block()?).or_else(|_| self.wrong("text"))
    }

    fn block(&mut self) -> Read<&'a [u8]> {
        let len = self.narrow()?;
        self.take(len)
    }

    /// See [`Writer::head`].
    pub fn head(&mut self) -> Read<(u64, &'a [u8])> {
        let forgotten = self.whole()?;
        self.time = self.whole()?;
        Ok((forgotten, self.block()?))
    }

    fn policy(&mut self) -> Read<PolicyConfig> {
        let bytes = self.block()?;
        postcard::from_bytes(bytes).or_else(|_| self.wrong("a policy"))
    }

    fn phase(&mut self) -> Read<Phase> {
        let index = self.narrow::<usize>()?;
        Phase::ALL.get(index).copied().map_or_else(|| self.wrong("a phase"), Ok)
    }

    fn aside(&mut self) -> Read<Aside> {
        let ended = self.time()?;
        let began = ended.saturating_sub(self.whole()?);
        let (session, label) = (self.whole()?, Label::from_number(self.narrow()?));
        Ok(Aside { session, label, phase: self.phase()?, solo: self.whole()?, began, ended })
    }

    fn item(&mut self) -> Read<Item> {
        Ok(match self.whole()? {
            phase @ 0..=3 => Item::Op {
                phase: Phase::ALL[phase as usize],
                label: Label::from_number(self.narrow()?),
                token: self.whole()?,
                solo: self.whole()?,
                demand: Demand {
                    cube: self.float()?,
                    vector: self.float()?,
                    hbm: self.float()?,
                    static_s: self.float()?,
                    solo_s: self.float()?,
                },
            },
            4 => Item::RecordEvent(self.event()?),
            5 => Item::ResetEvent(self.event()?),
            6 => Item::WaitEvent(self.event()?),
            7 => Item::Notify { token: self.whole()? },
            8 => Item::AwaitFlag(self.flag()?),
            9 => Item::SetFlag(self.flag()?),
            10 => Item::ClearFlag(self.flag()?),
            _ => return self.wrong("a kind of item"),
        })
    }

    fn hint(&mut self) -> Read<HintInput> {
        let request = self.whole()?;
        let kind = match self.whole()? {
            0 => HintKind::Admitted {
                prompt_tokens: self.narrow()?,
                max_tokens: self.narrow()?,
                ttft: self.whole()?,
                tpot: self.whole()?,
                priority: self.narrow()?,
            },
            1 => HintKind::PrefillStarted,
            2 => HintKind::FirstToken,
            3 => HintKind::Progress { tokens: self.narrow()? },
            4 => HintKind::Finished,
            5 => HintKind::Aborted,
            _ => return self.wrong("a kind of hint"),
        };
        Ok(HintInput { request, kind })
    }

    pub fn entry(&mut self) -> Read<Entry> {
        Ok(match self.whole()? {
            0 => Entry::Push(self.time()?, self.stream()?, self.item()?),
            1 => Entry::Step(self.time()?),
            2 => Entry::Complete(self.time()?, self.whole()?),
            3 => Entry::Decided(Action::Submit { token: self.whole()?, stream: self.stream()? }),
            4 => Entry::Decided(Action::Done { token: self.whole()? }),
            5 => {
                let session = self.whole()?;
                let (tenant, weight, priority) = (self.narrow()?, self.narrow()?, self.narrow()?);
                Entry::OpenSession(session, SessionParams { tenant, weight, priority })
            }
            6 => Entry::CloseSession(self.time()?, self.whole()?),
            7 => Entry::OpenStream(self.stream()?, self.narrow()?),
            8 => Entry::CloseStream(self.time()?, self.stream()?),
            9 => Entry::NotifyEvent(self.time()?, self.event()?, self.whole()?),
            10 => Entry::DestroyEvent(self.event()?),
            11 => Entry::NotifyDevice(self.time()?, self.whole()?, self.whole()?),
            12 => Entry::Hint(self.time()?, self.whole()?, self.hint()?),
            13 => Entry::SetPolicy(self.policy()?),
            14 => Entry::ReleaseFlag(self.time()?, self.flag()?),
            15 => Entry::Aside(self.aside()?),
            16 => {
                let (tenant, weight, priority, window) =
                    (self.narrow()?, self.narrow()?, self.narrow()?, self.narrow()?);
                Entry::SetTenant(tenant, TenantParams { weight, priority, window })
            }
            17 => Entry::RemoveTenant(self.narrow()?),
            18 => Entry::Press(self.time()?, self.stream()?, self.whole()? != 0),
            _ => return self.wrong("a kind of entry"),
        })
    }
}
