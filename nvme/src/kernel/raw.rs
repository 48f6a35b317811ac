//! The passthrough ioctls and their structure (linux/nvme_ioctl.h).

#![allow(
    unsafe_code,
    reason = "NVMe passthrough is an ioctl without a safe wrapper"
)]

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::Status;
use crate::command::Command;

/// `struct nvme_passthru_cmd`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_length: u32,
    data_length: u32,
    cdw10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

// The kernel's layout: with another one it would run another command.
const _: () = assert!(size_of::<Passthrough>() == 72);
const _: () = assert!(offset_of!(Passthrough, nsid) == 4);
const _: () = assert!(offset_of!(Passthrough, address) == 24);
const _: () = assert!(offset_of!(Passthrough, data_length) == 36);
const _: () = assert!(offset_of!(Passthrough, cdw10_15) == 40);
const _: () = assert!(offset_of!(Passthrough, timeout_ms) == 64);
const _: () = assert!(offset_of!(Passthrough, result) == 68);

mod ioctl {
    //! Each generated function is unsafe: the caller vouches for the pointer and what it names.
    use super::Passthrough;

    nix::ioctl_none!(nvme_ioctl_id, b'N', 0x40);
    nix::ioctl_readwrite!(nvme_ioctl_admin_cmd, b'N', 0x41, Passthrough);
    nix::ioctl_readwrite!(nvme_ioctl_io_cmd, b'N', 0x43, Passthrough);
}

/// Which queue a command goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Admin,
    Io,
}

/// What the kernel gave back: the controller's status, or its own error.
pub(super) type Outcome = Result<(Status, u32), io::Error>;

/// Runs a command. `data` is read or written as the opcode's lowest two bits say.
pub(super) fn run(
    device: BorrowedFd<'_>,
    target: Target,
    command: &Command,
    data: &mut [u8],
    timeout_ms: u32,
) -> Outcome {
    let mut request = Passthrough {
        opcode: command.opcode,
        nsid: command.nsid,
        cdw2: command.cdw2_3[0],
        cdw3: command.cdw2_3[1],
        address: if data.is_empty() {
            0
        } else {
            data.as_mut_ptr() as u64
        },
        data_length: u32::try_from(data.len()).map_err(io::Error::other)?,
        cdw10_15: command.cdw10_15,
        timeout_ms,
        ..Passthrough::default()
    };
    let fd = device.as_raw_fd();
    // SAFETY: the descriptor is open for the whole call. The kernel reads and writes one
    // `nvme_passthru_cmd`, whose layout is asserted above, and moves at most `data_length` bytes
    // at `address`, which is the exclusively borrowed `data`. The call returns only after the
    // command has ended, so that no transfer outlives the borrow.
    let returned = unsafe {
        match target {
            Target::Admin => ioctl::nvme_ioctl_admin_cmd(fd, &mut request),
            Target::Io => ioctl::nvme_ioctl_io_cmd(fd, &mut request),
        }
    }?;
    // A positive return is the completion's status: 15 bits without the phase bit.
    Ok((Status((returned & 0x7fff) as u16), request.result))
}

/// NVME_IOCTL_ID: the namespace identifier of a namespace device.
pub(super) fn namespace_id(device: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the descriptor is open for the whole call; the request takes no argument.
    let nsid = unsafe { ioctl::nvme_ioctl_id(device.as_raw_fd()) }?;
    u32::try_from(nsid).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in linux/nvme_ioctl.h of Linux 6.12, for x86-64 and arm64.
    #[test]
    fn ioctl_numbers_are_those_of_the_kernel() {
        let length = size_of::<Passthrough>();
        assert_eq!(nix::request_code_none!(b'N', 0x40), 0x4e40);
        assert_eq!(
            nix::request_code_readwrite!(b'N', 0x41, length),
            0xc048_4e41
        );
        assert_eq!(
            nix::request_code_readwrite!(b'N', 0x43, length),
            0xc048_4e43
        );
    }

    /// A file is no NVMe device: the kernel refuses, and nothing else happens.
    #[test]
    fn a_file_is_refused() {
        use std::os::fd::AsFd;
        let file = tempfile::tempfile().expect("make a file");
        let outcome = run(file.as_fd(), Target::Io, &Command::flush(1), &mut [], 1000);
        let error = outcome.expect_err("not a device");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTTY));
    }
}
