//! PostgreSQL on the shared volume: made, started, watched, stopped.
//!
//! Every function is one action with an outcome; when to do what is decided elsewhere. Whatever
//! writes takes the [`Licence`](fencing::Licence) of a permit, and every wait has a deadline.
//!
//! ```text
//! Programs ── DataDirectory::read/admit ── initdb ── launch ── Starting::ready ── Session ── stop
//! ```

mod configuration;
mod control_data;
mod data_directory;
mod initdb;
mod instance;
mod process;
pub mod replication;
mod session;
mod start;
mod stop;

pub use configuration::{ConfigurationError, SUPERUSER, rewrite as rewrite_configuration};
pub use control_data::{
    CONTROL_FILE, ControlData, DatabaseState, InvalidLsn, Lsn, ParseError, ReadError,
};
pub use data_directory::{DataDirectory, DataDirectoryError};
pub use initdb::{InitdbError, initdb};
pub use instance::{Instance, OLDEST_MAJOR, OsUser, OsUserError, Programs, ProgramsError};
pub use process::{End, Isolation, Postmaster, Request, Spawn, SpawnError};
pub use session::{Pulse, Session, SessionError};
pub use start::{
    Launched, NotReady, PostmasterStatus, StartError, StartedBy, Starting, launch, launch_as,
};
pub use stop::{NotShutDown, StopBounds, StopOutcome, StoppedBy, kill, stop, verify_shut_down};
