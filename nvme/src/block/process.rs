//! What a process that serves a block device must arrange for itself.

use std::io;

use nix::sys::signal::Signal;

use super::raw;

/// Marks the calling thread, and those it starts afterwards, as part of the path to a block device:
/// their memory allocations then never wait for write-back to that very device
/// (`PR_SET_IO_FLUSHER`, Linux 5.6). Needs CAP_SYS_RESOURCE.
pub fn become_io_flusher() -> io::Result<()> {
    raw::set_io_flusher()
}

/// Whether something keeps this machine's wall clock in step with the world's (`adjtimex`).
pub fn clock_is_synchronized() -> io::Result<bool> {
    raw::clock_is_synchronized()
}

/// Has the kernel kill the calling process when the parent *thread* ends (`PR_SET_PDEATHSIG`), and
/// fails if `parent`, the process meant, is no longer the parent: it died before this call.
pub fn die_with_parent(parent: nix::unistd::Pid) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid() == parent {
        Ok(())
    } else {
        Err(io::Error::other("the parent process is gone"))
    }
}
