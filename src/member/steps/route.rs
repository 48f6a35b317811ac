//! Leading clients away.

use fencing::{Epoch, Mono};

use super::{Done, Tools, failed};
use crate::decide::Outcome;
use crate::member::event::Changes;

impl Tools {
    pub(super) async fn withdraw(&self, epoch: Epoch, deadline: Mono) -> Done {
        match self.router.withdraw(epoch, deadline).await {
            Ok(()) => (Outcome::Done, Changes::default()),
            Err(error) => failed(error),
        }
    }
}
