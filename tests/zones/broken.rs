//! Rules that are not kept, so that the simulation proves that it would find it.

/// A rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    Nothing,
    /// A site says of the others, too, that they have stopped to follow.
    SpeaksForOthers,
    /// What a primary shows at its start counts as confirmed.
    KeepsConfirmed,
    /// PostgreSQL stops to wait without a word in the record.
    DegradesSilently,
    /// A primary that was superseded goes on.
    StaysPrimary,
    /// PostgreSQL stops to wait first, then the record says so.
    PostgresFirst,
    /// What an earlier owner of the site wrote is taken for lost.
    ForgetsOwners,
    /// A change of PostgreSQL that failed is taken for one that did not happen, and PostgreSQL is not
    /// asked.
    TrustsFailure,
    /// A copy that was restored from a backup stands for the one before at once.
    TrustsRestored,
}

impl Broken {
    /// Whether copies are made from backups. Where another rule is broken they would only make it rarer that
    /// just that is found.
    pub fn restores(self) -> bool {
        matches!(self, Self::Nothing | Self::TrustsRestored)
    }
}
