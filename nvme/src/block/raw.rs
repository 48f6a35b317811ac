//! The ioctls and process controls themselves: numbers, layouts, and one safe function for each.

#![allow(
    unsafe_code,
    reason = "ioctl and prctl have no safe wrapper in nix, rustix or std"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// `LO_FLAGS_AUTOCLEAR` (linux/loop.h): the kernel detaches the device at its last close.
pub(super) const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `LO_FLAGS_DIRECT_IO` (linux/loop.h): requests bypass the backing file's page cache.
pub(super) const LO_FLAGS_DIRECT_IO: u32 = 16;
/// `EXT4_GOING_FLAGS_NOLOGFLUSH` (fs/ext4/ext4.h): stop at once, flush nothing.
const GOING_FLAGS_NOLOGFLUSH: u32 = 2;
/// `PR_SET_IO_FLUSHER` (linux/prctl.h).
const PR_SET_IO_FLUSHER: libc::c_int = 57;
/// `LO_NAME_SIZE` (linux/loop.h).
const LO_NAME_SIZE: usize = 64;

/// `struct loop_info64` (linux/loop.h).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub(super) flags: u32,
    file_name: [u8; LO_NAME_SIZE],
    crypt_name: [u8; LO_NAME_SIZE],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` (linux/loop.h).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

// The kernel's layouts on 64-bit machines: a different one would configure something else.
const _: () = assert!(size_of::<LoopInfo>() == 232 && offset_of!(LoopInfo, flags) == 52);
const _: () = assert!(size_of::<LoopConfig>() == 304 && offset_of!(LoopConfig, info) == 8);

mod ioctl {
    //! Each generated function is unsafe: the caller vouches for the pointer.
    use super::{LoopConfig, LoopInfo};

    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
    nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
    nix::ioctl_read!(fs_ioc_shutdown, b'X', 125, u32);
    nix::ioctl_none_bad!(loop_clr_fd, 0x4c01);
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, LoopInfo);
    nix::ioctl_write_ptr_bad!(loop_configure, 0x4c0a, LoopConfig);
    nix::ioctl_none_bad!(loop_ctl_get_free, 0x4c82);
}

/// BLKFLSBUF: writes the device's dirty pages back, then drops its page cache.
pub(super) fn flush_buffers(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; BLKFLSBUF takes no argument.
    unsafe { ioctl::blkflsbuf(device.as_raw_fd()) }?;
    Ok(())
}

/// BLKGETSIZE64: size in bytes.
pub(super) fn size(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes = 0_usize;
    // SAFETY: the descriptor is open for the whole call; the kernel writes one 64-bit number, the
    // size of `usize` on the 64-bit machines for which the layouts above are asserted.
    unsafe { ioctl::blkgetsize64(device.as_raw_fd(), &mut bytes) }?;
    Ok(bytes as u64)
}

/// BLKSSZGET: logical block size in bytes.
pub(super) fn logical_block_size(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open for the whole call; the kernel writes one `int`.
    unsafe { ioctl::blksszget(device.as_raw_fd(), &mut bytes) }?;
    u32::try_from(bytes).map_err(io::Error::other)
}

/// FS_IOC_SHUTDOWN without flushing the log.
pub(super) fn shut_down_without_flush(mount_point: BorrowedFd<'_>) -> io::Result<()> {
    let mut flags = GOING_FLAGS_NOLOGFLUSH;
    // SAFETY: the descriptor is open for the whole call; the kernel reads one u32 through the
    // pointer (the request is declared as "read", by mistake, since XFS introduced it).
    unsafe { ioctl::fs_ioc_shutdown(mount_point.as_raw_fd(), &mut flags) }?;
    Ok(())
}

/// LOOP_CTL_GET_FREE: the number of a loop device that nobody uses at this moment.
pub(super) fn free_loop(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the descriptor is open for the whole call; the request takes no argument.
    let number = unsafe { ioctl::loop_ctl_get_free(control.as_raw_fd()) }?;
    u32::try_from(number).map_err(io::Error::other)
}

/// LOOP_CONFIGURE: attaches `backing` to `device` in one step. `name` is cut at 63 bytes.
pub(super) fn configure_loop(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    block_size: u32,
    flags: u32,
    name: &str,
) -> io::Result<()> {
    let mut config = LoopConfig::new_zeroed();
    config.fd = descriptor_number(backing.as_raw_fd())?;
    config.block_size = block_size;
    config.info.flags = flags;
    let length = name.len().min(LO_NAME_SIZE - 1);
    config.info.file_name[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: both descriptors are open for the whole call; the kernel reads one `loop_config`,
    // whose size and offsets are asserted above.
    unsafe { ioctl::loop_configure(device.as_raw_fd(), &config) }?;
    Ok(())
}

fn descriptor_number(fd: RawFd) -> io::Result<u32> {
    u32::try_from(fd).map_err(io::Error::other)
}

/// LOOP_GET_STATUS64.
pub(super) fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::new_zeroed();
    // SAFETY: the descriptor is open for the whole call; the kernel writes one `loop_info64`,
    // whose size is asserted above and for which every bit pattern is valid.
    unsafe { ioctl::loop_get_status64(device.as_raw_fd(), &mut info) }?;
    Ok(info)
}

/// LOOP_CLR_FD: detaches, at the last close where others have the device open.
pub(super) fn clear_loop(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call; the request takes no argument.
    unsafe { ioctl::loop_clr_fd(device.as_raw_fd()) }?;
    Ok(())
}

/// PR_SET_IO_FLUSHER for the calling thread and the threads it starts from now on.
pub(super) fn set_io_flusher() -> io::Result<()> {
    // SAFETY: prctl with this option only sets flags of the calling thread; it reads no memory.
    let outcome = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if outcome == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `adjtimex` that changes nothing: whether the kernel takes its wall clock for synchronized.
pub(super) fn clock_is_synchronized() -> io::Result<bool> {
    // SAFETY: timex holds plain numbers, for which zero is a value.
    let mut times: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one timex to the exclusively borrowed one; modes 0 sets nothing.
    match unsafe { libc::adjtimex(&mut times) } {
        -1 => Err(io::Error::last_os_error()),
        state => Ok(state != libc::TIME_ERROR),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers as in linux/fs.h, linux/loop.h and linux/prctl.h of Linux 6.12, x86-64 and arm64.
    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        assert_eq!(nix::request_code_none!(0x12, 97), 0x1261);
        assert_eq!(
            nix::request_code_read!(0x12, 114, size_of::<usize>()),
            0x8008_1272
        );
        assert_eq!(
            nix::request_code_read!(b'X', 125, size_of::<u32>()),
            0x8004_587d
        );
        assert_eq!(nix::request_code_none!(0x12, 104), 0x1268, "BLKSSZGET");
    }

    #[test]
    fn loop_layouts_are_those_of_the_kernel() {
        assert_eq!(offset_of!(LoopInfo, number), 40);
        assert_eq!(offset_of!(LoopInfo, file_name), 56);
        assert_eq!(offset_of!(LoopInfo, crypt_name), 120);
        assert_eq!(offset_of!(LoopInfo, encrypt_key), 184);
        assert_eq!(offset_of!(LoopInfo, init), 216);
        assert_eq!(offset_of!(LoopConfig, reserved), 240);
    }
}
