//! The FUSE file system: a directory with one file, which is the namespace.
//!
//! It must never answer ENOSYS to fsync or fallocate: the kernel would remember that, and answer
//! later calls by itself, an fsync with success.

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, ReplyXattr, Request, WriteFlags,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{Backend, Volume};

/// The file's name in the root directory.
pub(super) const FILE_NAME: &str = "namespace";

const FILE_INODE: INodeNo = INodeNo(2);
/// Largest read or write of one request, in bytes: the kernel's own limit without extra settings.
const MAX_REQUEST: u32 = 1 << 20;
/// Requests in flight: above the loop device's queue depth, 128, so that the queue limits.
const MAX_BACKGROUND: u16 = 256;
/// Attributes are asked for afresh each time. They never change; this costs nothing on the data path.
const NO_CACHE: Duration = Duration::ZERO;

/// The file system over one volume.
pub(super) struct OneFile<B> {
    volume: Arc<Volume<B>>,
    runtime: Handle,
    /// Dropped when the kernel ends the session.
    ended: Option<oneshot::Sender<()>>,
}

impl<B: Backend> OneFile<B> {
    pub(super) fn new(volume: Arc<Volume<B>>, runtime: Handle, ended: oneshot::Sender<()>) -> Self {
        Self {
            volume,
            runtime,
            ended: Some(ended),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let (kind, perm, size) = match inode {
            INodeNo::ROOT => (FileType::Directory, 0o700, 0),
            FILE_INODE => (FileType::RegularFile, 0o600, self.volume.size()),
            _ => return None,
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: SystemTime::UNIX_EPOCH,
            mtime: SystemTime::UNIX_EPOCH,
            ctime: SystemTime::UNIX_EPOCH,
            crtime: SystemTime::UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: self.volume.block_size(),
            flags: 0,
        })
    }

    /// Runs one request as a task of its own, so that requests overlap and finish in any order.
    fn spawn<F, Fut>(&self, request: F)
    where
        F: FnOnce(Arc<Volume<B>>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.runtime.spawn(request(Arc::clone(&self.volume)));
    }
}

impl<B: Backend> Filesystem for OneFile<B> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_MAX_PAGES;
        config
            .add_capabilities(wanted)
            .map_err(|missing| io::Error::other(format!("the kernel's FUSE lacks {missing:?}")))?;
        let refused = |nearest| io::Error::other(format!("the limit would be {nearest}"));
        config.set_max_write(MAX_REQUEST).map_err(refused)?;
        let narrow = |nearest: u16| refused(u32::from(nearest));
        config.set_max_background(MAX_BACKGROUND).map_err(narrow)?;
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.take();
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.attributes(FILE_INODE) {
            Some(attributes) if parent == INodeNo::ROOT && name == FILE_NAME => {
                reply.entry(&NO_CACHE, &attributes, Generation(0));
            }
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: Option<FileHandle>,
        reply: ReplyAttr,
    ) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&NO_CACHE, &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if inode != FILE_INODE {
            return reply.error(Errno::EISDIR);
        }
        // Direct I/O: no page of this file is ever cached. Parallel writes: the kernel would
        // otherwise let one write at a time through.
        let flags = FopenFlags::FOPEN_DIRECT_IO
            | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
            | FopenFlags::FOPEN_NOFLUSH;
        reply.opened(FileHandle(0), flags);
    }

    fn read(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.spawn(async move |volume| match volume.read(offset, size).await {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(Errno::from_i32(errno)),
        });
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let data = Bytes::copy_from_slice(data);
        self.spawn(async move |volume| {
            let length = data.len() as u32;
            match volume.write(offset, data).await {
                Ok(()) => reply.written(length),
                Err(errno) => reply.error(Errno::from_i32(errno)),
            }
        });
    }

    fn fsync(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.spawn(async move |volume| answer(reply, volume.flush().await));
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // The loop device uses punching for discards *and* for write-zeroes requests that may free
        // the blocks, so that punched blocks must read as zeros.
        let deallocate = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            libc::FALLOC_FL_PUNCH_HOLE => true,
            libc::FALLOC_FL_ZERO_RANGE => false,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        self.spawn(async move |volume| {
            answer(reply, volume.write_zeroes(offset, length, deallocate).await);
        });
    }

    fn getxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        // The kernel asks for capabilities to drop at the first write; never again after this.
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        // close(2): makes nothing durable by contract.
        reply.ok();
    }
}

fn answer(reply: ReplyEmpty, outcome: Result<(), i32>) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(Errno::from_i32(errno)),
    }
}
