//! What carries this member's reservation commands and flushes to the volume.

use nvme::initiator::{Initiator, Options};

use crate::config::Volume;
use crate::decide::Timings;

/// The association's own deadline, in commands' deadlines: whoever sends a command gives up earlier,
/// but a preempt-and-abort may wait for its victims that long (see `fencing::drive`).
const COMMAND_DEADLINES: u32 = 5;

/// The user-space initiator, under the same host identity as the bridge. The kernel's initiator
/// becomes another one behind the same trait.
pub(super) type Carrier = Initiator;

/// How this member connects.
pub(super) fn options(volume: &Volume, timings: &Timings) -> Options {
    let mut options = Options::new(
        volume.address.to_string(),
        volume.subsystem.clone(),
        volume.namespace_id,
        volume.host(),
    );
    options.keep_alive = timings.keep_alive;
    options.command_deadline = COMMAND_DEADLINES * timings.command;
    options
}
