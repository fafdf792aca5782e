//! A pair of sockets that carry frames: each packet is one frame, whole, with the descriptors that belong to it.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::{FRAME_BYTES_MAX, FRAME_FDS_MAX};

/// Room asked for in each direction, bytes. The system may give less; a frame fits in any case.
const BUFFER_BYTES: libc::c_int = 1 << 20;
const CONTROL_BYTES: usize = 64 + 4 * FRAME_FDS_MAX;

/// One end.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// Whether a call may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Until it can be done.
    Yes,
    /// Never: `WouldBlock` instead.
    No,
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Socket {
    /// Two ends.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn pair() -> io::Result<(Socket, Socket)> {
        let mut fds = [-1; 2];
        // SAFETY: `fds` has room for two; what comes back are new descriptors that are ours.
        let (one, other) = unsafe {
            if libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
        };
        for fd in [&one, &other] {
            // SAFETY: the value is an int and lives through the call. More room is welcome and not needed.
            unsafe {
                let value: *const libc::c_int = &BUFFER_BYTES;
                let size = size_of::<libc::c_int>() as libc::socklen_t;
                libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_SNDBUF, value.cast(), size);
            }
        }
        Ok((Socket { fd: one }, Socket { fd: other }))
    }

    /// An end that was inherited: closed with `execve` from here on.
    ///
    /// # Errors
    /// The descriptor is no socket of packets.
    pub fn inherited(fd: RawFd) -> io::Result<Socket> {
        // SAFETY: descriptors only; the out parameter is an int. The descriptor is taken over when it is what it should be: nobody
        // else in this process knows its number, which came in the environment.
        unsafe {
            let mut kind: libc::c_int = 0;
            let mut size = size_of::<libc::c_int>() as libc::socklen_t;
            let into: *mut libc::c_int = &mut kind;
            if libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, into.cast(), &mut size) != 0 {
                return Err(io::Error::last_os_error());
            }
            if kind != libc::SOCK_SEQPACKET {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket of packets"));
            }
            if libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Socket { fd: OwnedFd::from_raw_fd(fd) })
        }
    }

    /// Sends one frame and lends its descriptors.
    ///
    /// # Errors
    /// `WouldBlock`; the other end is closed; the frame is larger than [`FRAME_BYTES_MAX`].
    pub fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>], wait: Wait) -> io::Result<()> {
        if frame.len() > FRAME_BYTES_MAX || fds.len() > FRAME_FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the frame is too large"));
        }
        let mut part = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
        let mut control = Control([0; CONTROL_BYTES]);
        let flags = libc::MSG_NOSIGNAL | if wait == Wait::No { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: header, part and control live through the call; `control` is aligned and large enough for FRAME_FDS_MAX
        // descriptors; the kernel does not write through `iov_base` when sending.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &mut part;
            header.msg_iovlen = 1;
            if !fds.is_empty() {
                let bytes = (size_of::<RawFd>() * fds.len()) as u32;
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = libc::CMSG_SPACE(bytes) as usize;
                let first = libc::CMSG_FIRSTHDR(&header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(bytes) as usize;
                let data = libc::CMSG_DATA(first).cast::<RawFd>();
                for (nth, fd) in fds.iter().enumerate() {
                    data.add(nth).write_unaligned(fd.as_raw_fd());
                }
            }
            loop {
                if libc::sendmsg(self.fd.as_raw_fd(), &header, flags) >= 0 {
                    return Ok(());
                }
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }

    /// Receives one frame into `buffer` and its descriptors into `fds`; says its bytes. 0: the other end is closed.
    ///
    /// # Errors
    /// `WouldBlock`; a frame that is larger than the buffer or brings too many descriptors (`InvalidData`).
    pub fn receive(&self, buffer: &mut [u8], fds: &mut Vec<OwnedFd>, wait: Wait) -> io::Result<usize> {
        let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        let mut control = Control([0; CONTROL_BYTES]);
        let flags = libc::MSG_CMSG_CLOEXEC | if wait == Wait::No { libc::MSG_DONTWAIT } else { 0 };
        // SAFETY: as in `send`; the descriptors that come back are new ones of this process and owned by nobody yet.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL_BYTES;
            let count = loop {
                let count = libc::recvmsg(self.fd.as_raw_fd(), &mut header, flags);
                if count >= 0 {
                    break count as usize;
                }
                let error = io::Error::last_os_error();
                match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    // The other end died with frames unread: nothing more will come.
                    io::ErrorKind::ConnectionReset => return Ok(0),
                    _ => return Err(error),
                }
            };
            let mut next = libc::CMSG_FIRSTHDR(&header);
            while !next.is_null() {
                if (*next).cmsg_level == libc::SOL_SOCKET && (*next).cmsg_type == libc::SCM_RIGHTS {
                    let data = libc::CMSG_DATA(next).cast::<RawFd>();
                    let bytes = (*next).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                    for nth in 0..bytes / size_of::<RawFd>() {
                        fds.push(OwnedFd::from_raw_fd(data.add(nth).read_unaligned()));
                    }
                }
                next = libc::CMSG_NXTHDR(&header, next);
            }
            if header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is larger than the protocol allows"));
            }
            Ok(count)
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Sealed;

    #[test]
    fn frames_come_whole_with_their_descriptors() {
        let (one, other) = Socket::pair().expect("a pair");
        let (mut buffer, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        let nothing = other.receive(&mut buffer, &mut fds, Wait::No).expect_err("nothing was sent");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        let large = vec![7; FRAME_BYTES_MAX];
        let memory: Vec<Sealed> = (0..FRAME_FDS_MAX).map(|n| Sealed::new(&[n as u8]).expect("memory")).collect();
        let lent: Vec<BorrowedFd<'_>> = memory.iter().map(AsFd::as_fd).collect();
        one.send(b"first", &[], Wait::No).expect("sent");
        one.send(&large, &lent, Wait::No).expect("sent");
        assert!(one.send(&[0; FRAME_BYTES_MAX + 1], &[], Wait::No).is_err());
        assert_eq!((other.receive(&mut buffer, &mut fds, Wait::Yes).expect("came"), fds.len()), (5, 0));
        assert_eq!(&buffer[..5], b"first");
        assert_eq!(other.receive(&mut buffer, &mut fds, Wait::Yes).expect("came"), FRAME_BYTES_MAX);
        let last = Sealed::from_peer(fds.pop().expect("passed"), 1).expect("sealed");
        assert_eq!((&*last.map().expect("mapped"), fds.len()), (&[FRAME_FDS_MAX as u8 - 1][..], FRAME_FDS_MAX - 1));
        drop(one);
        assert_eq!(other.receive(&mut buffer, &mut fds, Wait::Yes).expect("closed"), 0);
    }

    #[test]
    fn a_full_socket_does_not_make_the_sender_wait() {
        let (one, _other) = Socket::pair().expect("a pair");
        let frame = vec![0; FRAME_BYTES_MAX];
        let error = (0..1000).find_map(|_| one.send(&frame, &[], Wait::No).err()).expect("it is bounded");
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
