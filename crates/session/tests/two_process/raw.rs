//! The protocol by hand: peers that do what the library never does.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_setfl, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::time::Timespec;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::Duration;
use wire::control::{Answer, Hello, Layout, Welcome};

/// Where the ring's tail lies in the shared memory.
pub const TAIL_BYTES: u64 = 256;

fn socket() -> OwnedFd {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

pub fn connect(path: &Path) -> OwnedFd {
    let socket = socket();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

pub fn send(socket: &OwnedFd, bytes: &[u8]) {
    send_with(socket, bytes, &[]);
}

fn send_with(socket: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
}

fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

pub fn receive(socket: &OwnedFd, timeout: Duration) -> (Vec<u8>, Vec<OwnedFd>) {
    assert!(readable(socket, timeout), "nothing came");
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags).unwrap();
    bytes.truncate(message.bytes);
    let fds = control.drain().filter_map(|m| match m {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    (bytes, fds.flatten().collect())
}

/// A client that got in and now does as it likes.
pub struct Session {
    socket: OwnedFd,
    memory: OwnedFd,
    doorbell: OwnedFd,
}

impl Session {
    pub fn open(path: &Path) -> Self {
        let socket = connect(path);
        let hello = Hello {
            version: wire::PROTOCOL_VERSION,
            signatures_digest: acl_abi::SIGNATURES_DIGEST,
            pid: 1,
            va_base: 1 << 40,
            va_len: 1 << 40,
            process_name: "hostile".into(),
        };
        send(&socket, &hello.encode());
        let (answer, fds) = receive(&socket, Duration::from_secs(20));
        assert!(matches!(Answer::decode(&answer), Ok(Answer::Welcome(_))));
        let [memory, doorbell] = <[OwnedFd; 2]>::try_from(fds).unwrap();
        Self { socket, memory, doorbell }
    }

    pub fn resize(&self, bytes: u64) -> rustix::io::Result<()> {
        ftruncate(&self.memory, bytes)
    }

    /// Everything a client can do to the eventfd that it shares with the daemon.
    pub fn drain_and_block_doorbell(&self) {
        let _ = rustix::io::read(&self.doorbell, &mut [0; 8]);
        rustix::io::write(&self.doorbell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl_setfl(&self.doorbell, rustix::fs::OFlags::RDWR).unwrap();
    }

    pub fn ring(&self) {
        // The counter is full: make room for one more, which is an edge again.
        rustix::io::read(&self.doorbell, &mut [0; 8]).unwrap();
        rustix::io::write(&self.doorbell, &1u64.to_ne_bytes()).unwrap();
    }

    pub fn write_words(&self, at: u64, words: &[u64]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(rustix::io::pwrite(&self.memory, &bytes, at), Ok(bytes.len()));
    }

    pub fn wait_closed(&self, timeout: Duration) -> bool {
        readable(&self.socket, timeout)
    }
}

/// A daemon that answers what the test wants.
pub struct FakeDaemon(OwnedFd);

impl FakeDaemon {
    pub fn listen(path: &Path) -> Self {
        let socket = socket();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        Self(socket)
    }

    /// Welcomes one client with memory of `bytes`, sealed or not, and the first `count` of the two descriptors.
    pub fn welcome(&self, layout: Layout, bytes: u64, sealed: bool, count: usize) {
        let client = rustix::net::accept(&self.0).unwrap();
        receive(&client, Duration::from_secs(20));
        let memory = memfd_create("fake", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&memory, bytes).unwrap();
        if sealed {
            fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).unwrap();
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let soc_name = "Ascend910B3".into();
        let welcome =
            Answer::Welcome(Welcome { session: 1, epoch: 1, device_index: 0, hbm_bytes: 1, soc_name, layout });
        send_with(&client, &welcome.encode(), &[memory.as_fd(), bell.as_fd()][..count]);
        // Until the client has made up its mind.
        readable(&client, Duration::from_secs(20));
    }
}
