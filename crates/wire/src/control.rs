//! The handshake: one message each way over a Unix seqpacket socket.
//!
//! The client sends [`Hello`]; the daemon answers [`Welcome`], with the shared memory and the doorbell as file
//! descriptors, or [`Refuse`]. Afterwards the socket carries nothing: its end of file means that the peer is gone.
//!
//! **Invariant:** the first 16 bytes of every message (magic, protocol version, kind) and the whole of `Refuse` keep their
//! layout for ever, so that builds which disagree about everything else can still tell each other so.

use crate::cursor::{Put, Reader, clip, put_text};
use crate::limits::{CONTROL_BYTES_MAX, NAME_BYTES_MAX, REFUSAL_BYTES_MAX};
use crate::reply::SLOT_WORDS;
use crate::{DecodeError, PROTOCOL_VERSION};

const MAGIC: u64 = u64::from_le_bytes(*b"FlexNPU\0");
const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSE: u32 = 3;

/// What a client says first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The client's [`PROTOCOL_VERSION`].
    pub version: u32,
    /// The client's `acl_abi::SIGNATURES_DIGEST`.
    pub signatures_digest: u64,
    /// Process id as the client sees it; the daemon trusts only the socket's credentials.
    pub pid: u32,
    /// First address of the range that the client reserved for device addresses; page-aligned.
    pub va_base: u64,
    /// Its length in bytes.
    pub va_len: u64,
    /// For logs and metrics; at most [`NAME_BYTES_MAX`] bytes, cut when sent.
    pub process_name: String,
}

/// The daemon's answer to a client that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Session number, unique as long as the daemon lives.
    pub session: u64,
    /// Changes with every start of the daemon.
    pub epoch: u64,
    /// Which of the machine's devices this daemon owns.
    pub device_index: u32,
    /// Memory of the device in bytes.
    pub hbm_bytes: u64,
    /// SoC name as `aclrtGetSocName` answers it.
    pub soc_name: String,
    /// Sizes of the shared memory.
    pub layout: Layout,
}

/// The daemon's answer to a client that does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refuse {
    /// Why.
    pub code: RefuseCode,
    /// What to do about it, in a sentence.
    pub message: String,
}

/// Why a client was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefuseCode {
    /// Another [`PROTOCOL_VERSION`].
    Version = 1,
    /// Another operator table.
    Signatures = 2,
    /// A message that makes no sense.
    Malformed = 3,
    /// As many sessions as the daemon takes.
    Busy = 4,
}

/// A message of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Come in.
    Welcome(Welcome),
    /// Stay out.
    Refuse(Refuse),
}

/// Sizes of the shared memory. The daemon chooses; both ends compute the same [`Layout::offsets`] from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of the command ring's records; a power of two.
    pub ring_bytes: u32,
    /// Bytes of the arena: staging blocks first, pinned host memory after them. A multiple of [`PAGE_BYTES`].
    pub arena_bytes: u64,
    /// Bytes of one staging block; a multiple of [`PAGE_BYTES`].
    pub staging_block_bytes: u32,
    /// Number of staging blocks.
    pub staging_blocks: u32,
    /// Number of reply slots: calls that wait at the same time.
    pub reply_slots: u32,
}

/// Unit of the layout.
pub const PAGE_BYTES: u64 = 4096;
/// Largest ring.
pub const RING_BYTES_MAX: u32 = 64 << 20;
/// Largest arena.
pub const ARENA_BYTES_MAX: u64 = 64 << 30;
/// Most staging blocks.
pub const STAGING_BLOCKS_MAX: u32 = 4096;
/// Most reply slots.
pub const REPLY_SLOTS_MAX: u32 = 4096;

impl Default for Layout {
    /// Ring 4 MiB (about 15 000 operators), 256 slots, arena 256 MiB of which 64 blocks of 256 KiB are for staging.
    fn default() -> Self {
        Self {
            ring_bytes: 4 << 20,
            arena_bytes: 256 << 20,
            staging_block_bytes: 256 << 10,
            staging_blocks: 64,
            reply_slots: 256,
        }
    }
}

/// Byte offsets into the shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets {
    /// State words of the staging blocks, 64 bits each.
    pub staging_states: u64,
    /// Reply slots.
    pub replies: u64,
    /// Records of the ring.
    pub ring: u64,
    /// The arena.
    pub arena: u64,
    /// Length of the whole.
    pub total: u64,
}

impl Layout {
    /// Where everything lies; the first page holds the fixed words (positions, flags).
    pub fn offsets(&self) -> Offsets {
        let page = |bytes: u64| bytes.next_multiple_of(PAGE_BYTES);
        let staging_states = PAGE_BYTES;
        let replies = page(staging_states + u64::from(self.staging_blocks) * 8);
        let ring = page(replies + u64::from(self.reply_slots) * SLOT_WORDS as u64 * 8);
        let arena = page(ring + u64::from(self.ring_bytes));
        Offsets { staging_states, replies, ring, arena, total: arena + self.arena_bytes }
    }

    /// Bytes of the arena that staging blocks take.
    pub fn staging_bytes(&self) -> u64 {
        u64::from(self.staging_block_bytes) * u64::from(self.staging_blocks)
    }

    /// Checks every size against its limit and against the others.
    ///
    /// # Errors
    /// Names the size that is wrong.
    pub fn check(&self) -> Result<(), DecodeError> {
        let range = |ok: bool, what, value: u64| {
            if ok { Ok(()) } else { Err(DecodeError::Range { what, value: value as i64 }) }
        };
        let ring = self.ring_bytes;
        range(ring.is_power_of_two() && (4096..=RING_BYTES_MAX).contains(&ring), "ring bytes", ring.into())?;
        let block = u64::from(self.staging_block_bytes);
        range(block > 0 && block.is_multiple_of(PAGE_BYTES), "staging block bytes", block)?;
        let blocks = self.staging_blocks;
        range((1..=STAGING_BLOCKS_MAX).contains(&blocks), "staging blocks", blocks.into())?;
        range((1..=REPLY_SLOTS_MAX).contains(&self.reply_slots), "reply slots", self.reply_slots.into())?;
        let arena = self.arena_bytes;
        range(arena.is_multiple_of(PAGE_BYTES) && arena <= ARENA_BYTES_MAX, "arena bytes", arena)?;
        range(self.staging_bytes() <= arena, "staging bytes", self.staging_bytes())
    }
}

fn begin(kind: u32, version: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    out.u64(MAGIC);
    out.u32(version);
    out.u32(kind);
    out
}

/// Version and kind of a message, and the rest of it.
fn opened(bytes: &[u8]) -> Result<(u32, u32, Reader<'_>), DecodeError> {
    if bytes.len() > CONTROL_BYTES_MAX {
        let what = "bytes of a handshake message";
        return Err(DecodeError::TooMany { what, count: bytes.len(), max: CONTROL_BYTES_MAX });
    }
    let mut r = Reader::new(bytes);
    let magic = r.u64()?;
    if magic != MAGIC {
        return Err(DecodeError::Unknown { what: "magic", value: magic });
    }
    Ok((r.u32()?, r.u32()?, r))
}

/// A hello, read as far as its version allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Greeting {
    /// A client of our version.
    Hello(Hello),
    /// A client of another version; nothing else of it can be read.
    OtherVersion(u32),
}

impl Hello {
    /// Bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = begin(HELLO, self.version);
        out.u64(self.signatures_digest);
        out.u32(self.pid);
        out.u64(self.va_base);
        out.u64(self.va_len);
        put_text(clip(&self.process_name, NAME_BYTES_MAX), &mut out);
        out
    }

    /// Reads a client's first message.
    ///
    /// # Errors
    /// If it is none. Another version is not an error here, so that the daemon can say which.
    pub fn decode(bytes: &[u8]) -> Result<Greeting, DecodeError> {
        let (version, kind, mut r) = opened(bytes)?;
        if kind != HELLO {
            return Err(DecodeError::Unknown { what: "message", value: kind.into() });
        }
        if version != PROTOCOL_VERSION {
            return Ok(Greeting::OtherVersion(version));
        }
        let hello = Hello {
            version,
            signatures_digest: r.u64()?,
            pid: r.u32()?,
            va_base: r.u64()?,
            va_len: r.u64()?,
            process_name: r.text("bytes of a process name", NAME_BYTES_MAX)?.to_owned(),
        };
        r.end()?;
        let aligned = hello.va_base.is_multiple_of(PAGE_BYTES) && hello.va_len.is_multiple_of(PAGE_BYTES);
        let end = hello.va_base.checked_add(hello.va_len);
        if !aligned || hello.va_base == 0 || hello.va_len == 0 || end.is_none_or(|end| end > 1 << 56) {
            return Err(DecodeError::Range { what: "device address range", value: hello.va_base as i64 });
        }
        Ok(Greeting::Hello(hello))
    }
}

impl Answer {
    /// Bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Answer::Welcome(w) => {
                let mut out = begin(WELCOME, PROTOCOL_VERSION);
                out.u64(w.session);
                out.u64(w.epoch);
                out.u32(w.device_index);
                out.u64(w.hbm_bytes);
                put_text(clip(&w.soc_name, NAME_BYTES_MAX), &mut out);
                let l = w.layout;
                out.u32(l.ring_bytes);
                out.u64(l.arena_bytes);
                out.u32(l.staging_block_bytes);
                out.u32(l.staging_blocks);
                out.u32(l.reply_slots);
                out
            }
            Answer::Refuse(refuse) => {
                let mut out = begin(REFUSE, PROTOCOL_VERSION);
                out.u32(refuse.code as u32);
                put_text(clip(&refuse.message, REFUSAL_BYTES_MAX), &mut out);
                out
            }
        }
    }

    /// Reads the daemon's answer.
    ///
    /// # Errors
    /// If it is none, or a welcome of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (version, kind, mut r) = opened(bytes)?;
        let answer = match kind {
            WELCOME if version == PROTOCOL_VERSION => {
                let welcome = Welcome {
                    session: r.u64()?,
                    epoch: r.u64()?,
                    device_index: r.u32()?,
                    hbm_bytes: r.u64()?,
                    soc_name: r.text("bytes of a SoC name", NAME_BYTES_MAX)?.to_owned(),
                    layout: Layout {
                        ring_bytes: r.u32()?,
                        arena_bytes: r.u64()?,
                        staging_block_bytes: r.u32()?,
                        staging_blocks: r.u32()?,
                        reply_slots: r.u32()?,
                    },
                };
                welcome.layout.check()?;
                Answer::Welcome(welcome)
            }
            WELCOME => return Err(DecodeError::Unknown { what: "protocol version", value: version.into() }),
            REFUSE => {
                let code = match r.u32()? {
                    1 => RefuseCode::Version,
                    2 => RefuseCode::Signatures,
                    4 => RefuseCode::Busy,
                    _ => RefuseCode::Malformed,
                };
                let message = r.text("bytes of a refusal", REFUSAL_BYTES_MAX)?.to_owned();
                Answer::Refuse(Refuse { code, message })
            }
            _ => return Err(DecodeError::Unknown { what: "message", value: kind.into() }),
        };
        r.end()?;
        Ok(answer)
    }
}

/// The refusal of a client with another protocol version: says both and what to do.
pub fn refuse_version(theirs: u32) -> Refuse {
    Refuse {
        code: RefuseCode::Version,
        message: format!(
            "the client library speaks session protocol {theirs}, this daemon speaks {PROTOCOL_VERSION}; start the \
             application with the libraries that were built with this daemon (`vnpu run` of the same release)"
        ),
    }
}

/// The refusal of a client with another operator table: says both and what to do.
pub fn refuse_signatures(theirs: u64, ours: u64) -> Refuse {
    Refuse {
        code: RefuseCode::Signatures,
        message: format!(
            "the client library has operator table {theirs:#018x}, this daemon has {ours:#018x}; start the application \
             with the libraries that were built with this daemon (`vnpu run` of the same release)"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            version: PROTOCOL_VERSION,
            signatures_digest: 0x1234,
            pid: 42,
            va_base: 0x7000_0000_0000,
            va_len: 1 << 40,
            process_name: "python3".into(),
        }
    }

    fn welcome() -> Welcome {
        Welcome {
            session: 3,
            epoch: 99,
            device_index: 1,
            hbm_bytes: 64 << 30,
            soc_name: "Ascend910B3".into(),
            layout: Layout::default(),
        }
    }

    #[test]
    fn messages_survive_and_every_cut_is_refused() {
        let hello = hello();
        assert_eq!(Hello::decode(&hello.encode()), Ok(Greeting::Hello(hello.clone())));
        let answers =
            [Answer::Welcome(welcome()), Answer::Refuse(refuse_version(7)), Answer::Refuse(refuse_signatures(1, 2))];
        for answer in &answers {
            assert_eq!(Answer::decode(&answer.encode()).as_ref(), Ok(answer));
        }
        for bytes in [hello.encode(), answers[0].encode(), answers[1].encode()] {
            for len in 0..bytes.len() {
                assert!(Hello::decode(&bytes[..len]).is_err(), "cut at {len}");
                assert!(Answer::decode(&bytes[..len]).is_err(), "cut at {len}");
            }
        }
        let long = [hello.encode(), vec![0]].concat();
        assert_eq!(Hello::decode(&long), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn another_version_is_told_apart_from_nonsense() {
        let other = Hello { version: PROTOCOL_VERSION + 1, ..hello() }.encode();
        // A later version may have other fields: only the opening is read.
        assert_eq!(Hello::decode(&other[..16]), Ok(Greeting::OtherVersion(PROTOCOL_VERSION + 1)));
        assert!(Hello::decode(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }

    #[test]
    fn refusals_of_any_version_are_readable_and_say_both_sides() {
        let mut bytes = Answer::Refuse(refuse_version(7)).encode();
        bytes[8..12].copy_from_slice(&(PROTOCOL_VERSION + 5).to_le_bytes());
        let Ok(Answer::Refuse(refuse)) = Answer::decode(&bytes) else { panic!("not readable") };
        assert_eq!(refuse.code, RefuseCode::Version);
        assert!(
            refuse.message.contains("protocol 7,") && refuse.message.contains(&format!("speaks {PROTOCOL_VERSION};"))
        );
        assert!(refuse.message.contains("vnpu run"));
        let message = refuse_signatures(0xabc, 0xdef).message;
        assert!(message.contains("0xabc") || message.contains("0x0000000000000abc"), "{message}");
    }

    #[test]
    fn address_ranges_that_make_no_sense_are_refused() {
        for (va_base, va_len) in
            [(0, 4096), (4096, 0), (4097, 4096), (4096, 1), (u64::MAX - 4095, 8192), (4096, 1 << 57)]
        {
            assert!(Hello::decode(&Hello { va_base, va_len, ..hello() }.encode()).is_err(), "{va_base:#x}+{va_len:#x}");
        }
    }

    #[test]
    fn layouts_are_checked_and_their_parts_do_not_overlap() {
        let good = Layout::default();
        let small = Layout {
            ring_bytes: 4096,
            arena_bytes: 4096,
            staging_block_bytes: 4096,
            staging_blocks: 1,
            reply_slots: 1,
        };
        for layout in [good, small] {
            layout.check().unwrap();
            let o = layout.offsets();
            assert!(o.staging_states >= PAGE_BYTES);
            assert!(o.replies >= o.staging_states + u64::from(layout.staging_blocks) * 8);
            assert!(o.ring >= o.replies + u64::from(layout.reply_slots) * SLOT_WORDS as u64 * 8);
            assert!(o.arena >= o.ring + u64::from(layout.ring_bytes));
            assert_eq!(o.total, o.arena + layout.arena_bytes);
            assert!([o.staging_states, o.replies, o.ring, o.arena].iter().all(|v| v.is_multiple_of(PAGE_BYTES)));
        }
        for bad in [
            Layout { ring_bytes: 0, ..good },
            Layout { ring_bytes: 12_288, ..good },
            Layout { ring_bytes: RING_BYTES_MAX * 2, ..good },
            Layout { arena_bytes: 1, ..good },
            Layout { arena_bytes: ARENA_BYTES_MAX + PAGE_BYTES, ..good },
            Layout { arena_bytes: 4096, ..good },
            Layout { staging_block_bytes: 0, ..good },
            Layout { staging_block_bytes: 5000, ..good },
            Layout { staging_blocks: 0, ..good },
            Layout { staging_blocks: STAGING_BLOCKS_MAX + 1, staging_block_bytes: 4096, ..good },
            Layout { reply_slots: 0, ..good },
            Layout { reply_slots: REPLY_SLOTS_MAX + 1, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
            let bytes = Answer::Welcome(Welcome { layout: bad, ..welcome() }).encode();
            assert!(Answer::decode(&bytes).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_messages_never_panic(kind in 0u32..5, version in 0u32..3, rest in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = begin(kind, version);
            bytes.extend(rest);
            crate::testing::check_control(&bytes);
        }
    }
}
