//! The two ioctls of a watchdog device that no safe library offers: read and set its time-out.

#![allow(
    unsafe_code,
    reason = "the watchdog's time-out can be set by ioctl only"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

mod numbers {
    //! linux/watchdog.h: `WATCHDOG_IOCTL_BASE 'W'`; both carry an `int` of seconds.
    nix::ioctl_readwrite!(set_timeout, b'W', 6, libc::c_int);
    nix::ioctl_read!(get_timeout, b'W', 7, libc::c_int);

    /// The type that the header names.
    mod libc {
        pub(super) use std::ffi::c_int;
    }
}

/// `WDIOC_SETTIMEOUT`; gives back the seconds that the driver really set.
pub(super) fn set_timeout(device: &File, seconds: i32) -> io::Result<i32> {
    let mut value = seconds;
    // SAFETY: the descriptor is open for the call, and the ioctl reads and writes one `int`, which
    // `value` is. On a file that is no watchdog it fails with ENOTTY and touches nothing.
    unsafe { numbers::set_timeout(device.as_raw_fd(), &raw mut value) }?;
    Ok(value)
}

/// `WDIOC_GETTIMEOUT`, in seconds.
pub(super) fn get_timeout(device: &File) -> io::Result<i32> {
    let mut value = 0;
    // SAFETY: as above; the ioctl writes one `int`.
    unsafe { numbers::get_timeout(device.as_raw_fd(), &raw mut value) }?;
    Ok(value)
}
