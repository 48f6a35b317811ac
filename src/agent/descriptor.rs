//! An open file handed through a Unix socket (`SCM_RIGHTS`, unix(7)), with one byte that carries it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The byte that carries a descriptor, or says that none comes.
const CARRIER: [u8; 1] = [b'L'];

/// Hands `descriptor` over, or says that there is none.
pub(super) async fn send(
    stream: &UnixStream,
    descriptor: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    stream
        .async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let descriptors = [descriptor.unwrap_or(stream.as_fd())];
            if descriptor.is_some() {
                control.push(SendAncillaryMessage::ScmRights(&descriptors));
            }
            let data = [IoSlice::new(&CARRIER)];
            sendmsg(stream, &data, &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        })
        .await
}

/// Takes what was handed over; `None` if nothing was.
pub(super) async fn receive(stream: &UnixStream) -> io::Result<Option<OwnedFd>> {
    stream
        .async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut carrier = [0_u8; 1];
            let mut data = [IoSliceMut::new(&mut carrier)];
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(stream, &mut data, &mut control, flags)?;
            if received.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let rights = control.drain().filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            });
            let descriptor = rights.flatten().last();
            if carrier != CARRIER {
                let text = "the first byte is not of this protocol";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            Ok(descriptor)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, Write};

    #[tokio::test]
    async fn a_file_is_handed_over_or_none_is() {
        let (one, other) = UnixStream::pair().expect("a pair of sockets");
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"lock").expect("write");
        send(&one, Some(file.as_fd())).await.expect("send it");
        let taken = receive(&other).await.expect("take it").expect("a file");
        let mut taken = std::fs::File::from(taken);
        taken.rewind().expect("rewind");
        let mut text = String::new();
        taken.read_to_string(&mut text).expect("read");
        assert_eq!(text, "lock");
        send(&other, None).await.expect("send none");
        assert!(receive(&one).await.expect("take").is_none());
        drop(one);
        assert!(receive(&other).await.is_err());
    }
}
