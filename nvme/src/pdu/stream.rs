//! Whole protocol data units over a byte stream: [`PduReader`] and [`PduWriter`].

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::codec::{self, Shape};
use super::{COMMON_HEADER_LEN, DIGEST_LEN, Digests, FatalStatus, Pdu, Receiver, Violation};
use crate::command::le32;

/// Read ahead at least so many bytes: a few small units for one system call.
const READ_AHEAD: usize = 16 * 1024;
/// Data up to this many bytes is copied behind its header; more goes out by a vectored write.
const COPY_MAX: usize = 4 * 1024;

/// Why no unit could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed the connection between two units.
    #[error("the connection was closed")]
    Closed,
    /// Reading failed, or the connection ended within a unit.
    #[error("reading from the connection failed")]
    Io(#[source] std::io::Error),
    /// The unit breaks the protocol: send the termination request and close.
    #[error("the peer broke the protocol: {0}")]
    Violation(Violation),
    /// The data does not fit its digest. The unit is whole otherwise and the reader goes on with the
    /// next one: only this command fails (NVMe/TCP 1.1, 3.3.1.2).
    #[error("wrong data digest")]
    DataDigest(Box<Pdu>),
}

/// Reads units from a stream, with a bound on each unit's data.
pub struct PduReader<R> {
    stream: R,
    receiver: Receiver,
    digests: Digests,
    max_data: u32,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> PduReader<R> {
    /// A reader for the receiving side; no digests before [`PduReader::set_digests`].
    /// `max_data`: most data bytes of one unit.
    pub fn new(stream: R, receiver: Receiver, max_data: u32) -> Self {
        Self {
            stream,
            receiver,
            digests: Digests::default(),
            max_data,
            buffer: BytesMut::with_capacity(READ_AHEAD),
        }
    }

    /// The digests agreed by ICReq and ICResp hold from the next unit on.
    pub fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// Changes the bound on one unit's data, in bytes.
    pub fn set_max_data(&mut self, max_data: u32) {
        self.max_data = max_data;
    }

    /// The next unit. Cancel safe: a read that was dropped loses nothing.
    pub async fn read(&mut self) -> Result<Pdu, ReadError> {
        self.fill(COMMON_HEADER_LEN).await?;
        let mut common = [0; COMMON_HEADER_LEN];
        common.copy_from_slice(&self.buffer[..COMMON_HEADER_LEN]);
        let shape = Shape::decode(&common, self.receiver, self.digests, self.max_data)
            .map_err(|violation| self.violation(violation, COMMON_HEADER_LEN))?;
        self.fill(shape.total).await?;
        self.check_header_digest(&shape)?;
        let header = Bytes::copy_from_slice(&self.buffer[..shape.header]);
        let mut unit = self.buffer.split_to(shape.total).freeze();
        let intact = !shape.data_digest
            || crc32c::crc32c(&unit[shape.data_start..shape.data_end])
                == le32(&unit, shape.data_end);
        unit.truncate(shape.data_end);
        unit.advance(shape.data_start);
        let pdu = codec::decode_body(&shape, &header, unit).map_err(|mut violation| {
            violation.offending = header.clone();
            ReadError::Violation(violation)
        })?;
        if intact {
            Ok(pdu)
        } else {
            Err(ReadError::DataDigest(Box::new(pdu)))
        }
    }

    /// Whether the next unit is here already, so that [`PduReader::read`] would not wait.
    pub fn has_unit(&self) -> bool {
        self.buffer.len() >= COMMON_HEADER_LEN
            && self.buffer.len() >= le32(&self.buffer, 4) as usize
    }

    fn check_header_digest(&self, shape: &Shape) -> Result<(), ReadError> {
        if !shape.header_digest {
            return Ok(());
        }
        let received = le32(&self.buffer, shape.header);
        if crc32c::crc32c(&self.buffer[..shape.header]) == received {
            return Ok(());
        }
        let violation = Violation::new(FatalStatus::HeaderDigest, received, "wrong header digest");
        Err(self.violation(violation, shape.header))
    }

    fn violation(&self, mut violation: Violation, header: usize) -> ReadError {
        violation.offending = Bytes::copy_from_slice(&self.buffer[..header]);
        ReadError::Violation(violation)
    }

    /// Waits until the buffer holds `length` bytes, which [`Shape::decode`] has bounded.
    async fn fill(&mut self, length: usize) -> Result<(), ReadError> {
        while self.buffer.len() < length {
            self.buffer
                .reserve((length - self.buffer.len()).max(READ_AHEAD));
            let read = self
                .stream
                .read_buf(&mut self.buffer)
                .await
                .map_err(ReadError::Io)?;
            if read == 0 && self.buffer.is_empty() {
                return Err(ReadError::Closed);
            }
            if read == 0 {
                return Err(ReadError::Io(std::io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }
}

/// Writes units to a stream. Small units gather until [`PduWriter::flush`].
pub struct PduWriter<W> {
    stream: W,
    digests: Digests,
    alignment: u8,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> PduWriter<W> {
    /// A writer without digests and with the least data alignment.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            digests: Digests::default(),
            alignment: 0,
            buffer: BytesMut::with_capacity(READ_AHEAD),
        }
    }

    /// The digests agreed by ICReq and ICResp hold from the next unit on.
    pub fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    /// The receiver's wish, HPDA or CPDA, holds from the next unit on.
    pub fn set_alignment(&mut self, alignment: u8) {
        self.alignment = alignment;
    }

    /// Writes a unit, or keeps it until the next flush. Not cancel safe: after a write that was
    /// dropped the stream is in pieces and must be closed.
    pub async fn feed(&mut self, pdu: &Pdu) -> std::io::Result<()> {
        codec::encode_header(pdu, self.digests, self.alignment, &mut self.buffer);
        let digest = codec::data_digest(pdu, self.digests).map(u32::to_le_bytes);
        let tail = digest
            .as_ref()
            .map_or(&[][..], |bytes| &bytes[..DIGEST_LEN]);
        let data = pdu.data();
        if data.len() <= COPY_MAX {
            self.buffer.extend_from_slice(data);
            self.buffer.extend_from_slice(tail);
            return Ok(());
        }
        let mut chain = self.buffer.split().chain(data.clone()).chain(tail);
        self.stream.write_all_buf(&mut chain).await
    }

    /// Sends what has gathered.
    pub async fn flush(&mut self) -> std::io::Result<()> {
        if !self.buffer.is_empty() {
            self.stream.write_all_buf(&mut self.buffer).await?;
        }
        self.stream.flush().await
    }

    /// Writes a unit and sends it. Not cancel safe.
    pub async fn write(&mut self, pdu: &Pdu) -> std::io::Result<()> {
        self.feed(pdu).await?;
        self.flush().await
    }

    /// Sends bytes as they are, after what has gathered: for tests of what a peer does with units
    /// that [`PduWriter::write`] would not write. Not cancel safe.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.buffer.extend_from_slice(bytes);
        self.flush().await
    }

    /// The stream; what has gathered and was not flushed is lost.
    pub fn into_inner(self) -> W {
        self.stream
    }

    /// Ends the stream's writing side.
    pub async fn shutdown(&mut self) -> std::io::Result<()> {
        self.flush().await?;
        self.stream.shutdown().await
    }
}
