//! The table of named differences between real targets and the specification: what the
//! specification asks, with its clause, and what the target does instead. The model acts by it, so
//! the table *is* the expectation that a real target is held against, command by command.

/// One way in which a target departs from the specification, or uses a liberty that it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Departure {
    /// nvmet 6.13: a holder that preempts another registrant only changes the type; the victim stays.
    HolderKeepsVictim,
    /// nvmet: a holder that preempts its own key only changes the type; others with that key stay.
    HolderKeepsNamesake,
    /// nvmet: a preempt whose key matches nobody is a conflict.
    MissingVictimConflicts,
    /// nvmet: preempting the key 0 while nobody holds is a conflict.
    ZeroVictimConflicts,
    /// nvmet: of an all-registrants reservation one registrant counts as the holder.
    OneHolderOfAll,
    /// nvmet 6.13: replacing with IEKEY needs a registration all the same.
    ReplaceNeedsRegistration,
    /// nvmet: unregistering with IEKEY needs a registration all the same.
    UnregisterNeedsRegistration,
    /// nvmet: the key 0 can be registered.
    ZeroKeyRegisters,
    /// nvmet: releasing another type than the one held is a conflict.
    WrongReleaseConflicts,
    /// nvmet: a release by a host that does not hold is not checked for a reserved type.
    ReleaseTypeUnchecked,
    /// nvmet: a reserved action is an invalid opcode.
    ReservedActionIsOpcode,
    /// nvmet: CPTPL has no effect, whatever it asks.
    PersistenceIgnored,
    /// nvmet: a report shorter than its header is refused.
    ShortReportRefused,
    /// nvmet: a truncated report ends with the last whole entry.
    ReportInWholeEntries,
    /// nvmet: the refusal of the non-extended report has DNR set.
    PlainReportForbidsRetry,
    /// nvmet: a report lists the registrants in the order in which they registered.
    ReportInOrderOfArrival,
    /// nvmet: Compare is unknown.
    CompareUnknown,
    /// SPDK: a preempt-and-abort that would have to wait ends with Command Interrupted.
    DrainGivesUp,
}

/// A departure in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// A short name, as reports of a run have it.
    pub name: &'static str,
    /// Where the specification says what it asks (NVMe Base Specification 2.3).
    pub clause: &'static str,
    /// What the specification asks.
    pub asks: &'static str,
    /// What the target does.
    pub does: &'static str,
    /// Whether the specification leaves the choice, or only advises.
    pub liberty: bool,
}

impl Departure {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::HolderKeepsVictim,
        Self::HolderKeepsNamesake,
        Self::MissingVictimConflicts,
        Self::ZeroVictimConflicts,
        Self::OneHolderOfAll,
        Self::ReplaceNeedsRegistration,
        Self::UnregisterNeedsRegistration,
        Self::ZeroKeyRegisters,
        Self::WrongReleaseConflicts,
        Self::ReleaseTypeUnchecked,
        Self::ReservedActionIsOpcode,
        Self::PersistenceIgnored,
        Self::ShortReportRefused,
        Self::ReportInWholeEntries,
        Self::PlainReportForbidsRetry,
        Self::ReportInOrderOfArrival,
        Self::CompareUnknown,
        Self::DrainGivesUp,
    ];

    /// The table's row.
    pub const fn described(self) -> Described {
        const fn row(
            name: &'static str,
            clause: &'static str,
            words: [&'static str; 2],
        ) -> Described {
            let [asks, does] = words;
            Described {
                name,
                clause,
                asks,
                does,
                liberty: false,
            }
        }
        const fn free(
            name: &'static str,
            clause: &'static str,
            words: [&'static str; 2],
        ) -> Described {
            Described {
                liberty: true,
                ..row(name, clause, words)
            }
        }
        match self {
            Self::HolderKeepsVictim => row(
                "holder-keeps-victim",
                "8.1.24.7",
                [
                    "a holder's preempt unregisters the registrants with PRKEY; PRKEY 0h is Invalid Field",
                    "with any PRKEY: Success, takes the command's type, unregisters nobody",
                ],
            ),
            Self::HolderKeepsNamesake => row(
                "holder-keeps-namesake",
                "8.1.24.7",
                [
                    "a preempt of the holder's key, by the holder too, unregisters all others with that key",
                    "the holder's own only takes the command's type: others with its key stay",
                ],
            ),
            Self::MissingVictimConflicts => row(
                "missing-victim-conflicts",
                "8.1.24.7",
                [
                    "PRKEY that matches nobody is a conflict under an all-registrants reservation alone",
                    "Reservation Conflict, whoever holds",
                ],
            ),
            Self::ZeroVictimConflicts => row(
                "zero-victim-conflicts",
                "8.1.24.7",
                [
                    "PRKEY 0h is Invalid Field, but for an all-registrants reservation",
                    "without a reservation it is a key like others: Reservation Conflict if nobody has it",
                ],
            ),
            Self::OneHolderOfAll => row(
                "one-holder-of-all",
                "8.1.24.5, 8.1.24.6",
                [
                    "every registrant holds an all-registrants reservation: each may acquire it again or release it",
                    "one registrant counts: another's acquire is a conflict, its release does nothing",
                ],
            ),
            Self::ReplaceNeedsRegistration => row(
                "iekey-replace-needs-registration",
                "7.6, 8.1.24.3",
                [
                    "with IEKEY the absence of a current key causes no error: replace registers",
                    "Reservation Conflict for a host that is not registered",
                ],
            ),
            Self::UnregisterNeedsRegistration => row(
                "iekey-unregister-needs-registration",
                "7.6",
                [
                    "with IEKEY the absence of a current key causes no error",
                    "Reservation Conflict for a host that is not registered",
                ],
            ),
            Self::ZeroKeyRegisters => free(
                "zero-key-registers",
                "7.6, 8.1.24.7",
                [
                    "key 0h is not excluded in words, but means \"everybody\" in PRKEY; Baton's target refuses it",
                    "registers the key 0h",
                ],
            ),
            Self::WrongReleaseConflicts => free(
                "wrong-release-conflicts",
                "7.7",
                [
                    "a release of another type than the one held should be Invalid Field",
                    "Reservation Conflict",
                ],
            ),
            Self::ReleaseTypeUnchecked => row(
                "release-type-unchecked",
                "7.7",
                [
                    "a reserved RTYPE is Invalid Field",
                    "Success for a registrant that does not hold; who holds gets a conflict",
                ],
            ),
            Self::ReservedActionIsOpcode => row(
                "reserved-action-is-opcode",
                "7.5, 7.6, 7.7",
                [
                    "a reserved RREGA, RACQA or RRELA is Invalid Field",
                    "Invalid Command Opcode, after the check of the key",
                ],
            ),
            Self::PersistenceIgnored => row(
                "cptpl-ignored",
                "7.6",
                [
                    "CPTPL 3 is refused without the capability (RESCAP bit 0), CPTPL 1 is reserved",
                    "CPTPL has no effect; PTPLS stays 0",
                ],
            ),
            Self::ShortReportRefused => row(
                "short-report-refused",
                "7.8",
                [
                    "fewer bytes than the report has transfer that portion",
                    "fewer than the header's 64 bytes are Invalid Field",
                ],
            ),
            Self::ReportInWholeEntries => row(
                "report-in-whole-entries",
                "7.8",
                [
                    "fewer bytes than the report has transfer that portion",
                    "an entry that does not fit whole is left out, zero bytes in its place",
                ],
            ),
            Self::PlainReportForbidsRetry => free(
                "plain-report-dnr",
                "7.8",
                [
                    "with 128-bit identifiers a report without EDS is Host Identifier Inconsistent Format",
                    "the same with DNR, which Baton's target leaves clear so that Linux asks again with EDS",
                ],
            ),
            Self::ReportInOrderOfArrival => free(
                "report-in-order-of-arrival",
                "7.8",
                [
                    "the order of the report's entries is open; Baton's target sorts by host identifier",
                    "in the order of registration",
                ],
            ),
            Self::CompareUnknown => free(
                "compare-unknown",
                "NVM Command Set 1.2, 3.2.1",
                ["Compare is optional", "Invalid Command Opcode"],
            ),
            Self::DrainGivesUp => row(
                "drain-gives-up",
                "8.1.24.7",
                [
                    "a preempt-and-abort completes after all commands of the preempted hosts",
                    "Command Interrupted, after the change of state and before these commands are over",
                ],
            ),
        }
    }
}

/// A set of departures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Departures(u32);

impl Departures {
    /// None.
    pub const NONE: Self = Self(0);

    /// These.
    pub const fn of(all: &[Departure]) -> Self {
        let mut bits = 0;
        let mut n = 0;
        while n < all.len() {
            bits |= 1 << all[n] as u8;
            n += 1;
        }
        Self(bits)
    }

    /// Whether this one is in the set.
    pub const fn has(self, departure: Departure) -> bool {
        self.0 & (1 << departure as u8) != 0
    }

    /// The set with this one.
    pub const fn with(self, departure: Departure) -> Self {
        Self(self.0 | 1 << departure as u8)
    }

    /// Adds one.
    pub fn add(&mut self, departure: Departure) {
        *self = self.with(departure);
    }

    /// Those in the set, in the table's order.
    pub fn iter(self) -> impl Iterator<Item = Departure> {
        Departure::ALL.into_iter().filter(move |one| self.has(*one))
    }
}

/// How a target differs from the specification, and which options it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quirks {
    /// The target cannot keep registrations over a power loss (RESCAP bit 0 clear): an option.
    pub volatile: bool,
    /// Where it departs.
    pub departures: Departures,
}

impl Quirks {
    /// The specification, with persistence.
    pub const NONE: Self = Self {
        volatile: false,
        departures: Departures::NONE,
    };
    /// Linux' nvmet of 7.3, as measured by the case `conformance` of `scripts/test-vm`.
    pub const NVMET: Self = Self {
        volatile: true,
        departures: Departures::of(&[
            Departure::HolderKeepsNamesake,
            Departure::MissingVictimConflicts,
            Departure::ZeroVictimConflicts,
            Departure::OneHolderOfAll,
            Departure::UnregisterNeedsRegistration,
            Departure::ZeroKeyRegisters,
            Departure::WrongReleaseConflicts,
            Departure::ReleaseTypeUnchecked,
            Departure::ReservedActionIsOpcode,
            Departure::PersistenceIgnored,
            Departure::ShortReportRefused,
            Departure::ReportInWholeEntries,
            Departure::PlainReportForbidsRetry,
            Departure::ReportInOrderOfArrival,
            Departure::CompareUnknown,
        ]),
    };
    /// Linux' nvmet of 6.13, the first with reservations: what its source does beyond
    /// [`Self::NVMET`] was mended since.
    pub const NVMET_6_13: Self = Self {
        volatile: true,
        departures: Self::NVMET
            .departures
            .with(Departure::HolderKeepsVictim)
            .with(Departure::ReplaceNeedsRegistration),
    };
    /// SPDK 26.01 with a PTPL file.
    pub const SPDK: Self = Self {
        volatile: false,
        departures: Departures::of(&[Departure::DrainGivesUp]),
    };
}
