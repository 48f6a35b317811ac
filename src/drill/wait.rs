//! Waiting for what tells nobody that it happened.

use std::time::Duration;

use super::stage_error::StageError;
use crate::clock;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(20);

/// Waits for a condition on the system under drill.
///
/// # Errors
/// [`StageError::Overdue`] after `within`, and whatever the condition itself fails with.
pub async fn until(
    what: &str,
    within: Duration,
    mut holds: impl AsyncFnMut() -> Result<bool, StageError>,
) -> Result<(), StageError> {
    let until = clock::now() + within;
    while !holds().await? {
        if clock::now() >= until {
            let state = "it is as before".to_owned();
            return Err(StageError::Overdue {
                what: what.to_owned(),
                within,
                state,
            });
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
