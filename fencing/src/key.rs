//! The reservation key's layout: who registered, for which epoch, and what he says.
//!
//! ```text
//!  63           48 47        40 39                    20 19        12 11           0
//! ┌───────────────┬────────────┬────────────────────────┬────────────┬──────────────┐
//! │ cluster tag   │ member     │ epoch                  │ flags      │ beat         │
//! └───────────────┴────────────┴────────────────────────┴────────────┴──────────────┘
//! ```
//!
//! A key is never zero, for tag and member are not. It is unique per host and incarnation, because
//! equal keys of two hosts would make one preempt evict both.

use std::fmt;
use std::num::{NonZeroU8, NonZeroU16};

use serde::{Deserialize, Serialize};

/// A member's number within its site, 1 to 255.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberId(NonZeroU8);

impl MemberId {
    /// The member with this number; `None` for 0.
    pub const fn new(number: u8) -> Option<Self> {
        match NonZeroU8::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u8 {
        self.0.get()
    }
}

/// A number that is no member's: 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a member's number must be 1 to 255, not 0")]
pub struct InvalidMember;

impl TryFrom<u8> for MemberId {
    type Error = InvalidMember;

    fn try_from(number: u8) -> Result<Self, InvalidMember> {
        Self::new(number).ok_or(InvalidMember)
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One number per change of ownership of a site's volume, 0 (never owned) to 2^20 - 1.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(try_from = "u32", into = "u32")]
pub struct Epoch(u32);

impl Epoch {
    /// Before the first owner.
    pub const ZERO: Self = Self(0);
    /// The last one that fits the key. At one change a minute it is reached after two years.
    pub const MAX: Self = Self((1 << 20) - 1);

    /// The epoch with this number; `None` above [`Epoch::MAX`].
    pub const fn new(number: u32) -> Option<Self> {
        if number <= Self::MAX.0 {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The epoch of the next change of ownership; `None` when the numbers are used up: epochs must
    /// never repeat, so then the volume needs an operator (and a new cluster name).
    pub const fn next(self) -> Option<Self> {
        Self::new(self.0 + 1)
    }
}

/// A number too large for an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an epoch is at most {}, not {number}", Epoch::MAX)]
pub struct InvalidEpoch {
    /// What was given.
    pub number: u32,
}

impl TryFrom<u32> for Epoch {
    type Error = InvalidEpoch;

    fn try_from(number: u32) -> Result<Self, InvalidEpoch> {
        Self::new(number).ok_or(InvalidEpoch { number })
    }
}

impl From<Epoch> for u32 {
    fn from(epoch: Epoch) -> u32 {
        epoch.0
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// 16 bits that tell the keys of one site of one cluster from all others' on the same volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterTag(NonZeroU16);

impl ClusterTag {
    /// The tag of this site of this cluster: that of both names with a zero byte, which no name has,
    /// between them. So a site that is given another site's volume finds strangers there.
    pub fn of_site(cluster: &str, site: &str) -> Self {
        Self::of(&format!("{cluster}\0{site}"))
    }

    /// The tag of this name: FNV-1a (64 bits) folded to 16 by exclusive or, and 1 where that gives 0.
    /// It is on disk in persistent registrations: it must never change.
    pub fn of(name: &str) -> Self {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let hash = name.bytes().fold(OFFSET, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(PRIME)
        });
        let folded = (hash ^ (hash >> 16) ^ (hash >> 32) ^ (hash >> 48)) as u16;
        Self(NonZeroU16::new(folded).unwrap_or(NonZeroU16::MIN))
    }

    /// The tag with this number; `None` for 0.
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for ClusterTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// What a member says through its key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyFlags {
    /// Flushed and unmounted: take it.
    pub clean: bool,
    /// This standby could take over.
    pub ready: bool,
    /// This member reaches the lease store.
    pub reachable: bool,
    /// This member claims the volume, and it is not proven that earlier owners' commands are over.
    /// Set and cleared by the fence alone: who preempts a draining holder has not thereby drained
    /// the one before.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// Four bits of later versions: kept, never interpreted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reserved: u8,
}

fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl KeyFlags {
    /// Nothing said.
    pub const NONE: Self = Self {
        clean: false,
        ready: false,
        reachable: false,
        draining: false,
        reserved: 0,
    };
    const CLEAN: u8 = 1;
    const READY: u8 = 2;
    const REACHABLE: u8 = 4;
    const DRAINING: u8 = 8;
    const RESERVED_SHIFT: u32 = 4;

    /// As the key's eight bits.
    pub const fn bits(self) -> u8 {
        (if self.clean { Self::CLEAN } else { 0 })
            | (if self.ready { Self::READY } else { 0 })
            | (if self.reachable { Self::REACHABLE } else { 0 })
            | (if self.draining { Self::DRAINING } else { 0 })
            | (self.reserved << Self::RESERVED_SHIFT)
    }

    /// From the key's eight bits.
    pub const fn from_bits(bits: u8) -> Self {
        Self {
            clean: bits & Self::CLEAN != 0,
            ready: bits & Self::READY != 0,
            reachable: bits & Self::REACHABLE != 0,
            draining: bits & Self::DRAINING != 0,
            reserved: bits >> Self::RESERVED_SHIFT,
        }
    }
}

impl fmt::Display for KeyFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [
            (self.clean, "clean"),
            (self.ready, "ready"),
            (self.reachable, "reachable"),
            (self.draining, "draining"),
        ];
        let said: Vec<_> = words.iter().filter(|w| w.0).map(|w| w.1).collect();
        f.write_str(if said.is_empty() { "-" } else { "" })?;
        f.write_str(&said.join("|"))
    }
}

/// A member's sign of life in its key: 12 bits that wrap around. Only "did it move" has a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Beat(u16);

impl Beat {
    /// How many values there are before it wraps around: 68 minutes at one a second.
    pub const MODULUS: u16 = 1 << 12;
    /// A registration's first beat.
    pub const ZERO: Self = Self(0);

    /// The beat with this number, modulo [`Beat::MODULUS`].
    pub const fn new(number: u16) -> Self {
        Self(number % Self::MODULUS)
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The following beat; after the last comes 0.
    pub const fn next(self) -> Self {
        Self::new(self.0 + 1)
    }

    /// Beats from `earlier` to this one, modulo [`Beat::MODULUS`].
    pub const fn after(self, earlier: Self) -> u16 {
        (self.0 + Self::MODULUS - earlier.0) % Self::MODULUS
    }
}

/// A number too large for a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a beat is at most {}, not {number}", Beat::MODULUS - 1)]
pub struct InvalidBeat {
    /// What was given.
    pub number: u16,
}

impl TryFrom<u16> for Beat {
    type Error = InvalidBeat;

    fn try_from(number: u16) -> Result<Self, InvalidBeat> {
        if number < Self::MODULUS {
            Ok(Self(number))
        } else {
            Err(InvalidBeat { number })
        }
    }
}

impl From<Beat> for u16 {
    fn from(beat: Beat) -> u16 {
        beat.0
    }
}

impl fmt::Display for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A registration's key with its meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReservationKey {
    /// Whose cluster.
    pub cluster: ClusterTag,
    /// Which member.
    pub member: MemberId,
    /// The epoch that this member owns, or the newest it knows of.
    pub epoch: Epoch,
    /// What it says.
    pub flags: KeyFlags,
    /// Its sign of life.
    pub beat: Beat,
}

impl ReservationKey {
    const CLUSTER_SHIFT: u32 = 48;
    const MEMBER_SHIFT: u32 = 40;
    const EPOCH_SHIFT: u32 = 20;
    const FLAGS_SHIFT: u32 = 12;

    /// As on the wire; never 0.
    pub const fn pack(self) -> u64 {
        ((self.cluster.number() as u64) << Self::CLUSTER_SHIFT)
            | ((self.member.number() as u64) << Self::MEMBER_SHIFT)
            | ((self.epoch.number() as u64) << Self::EPOCH_SHIFT)
            | ((self.flags.bits() as u64) << Self::FLAGS_SHIFT)
            | self.beat.number() as u64
    }

    /// From the wire; `None` where the key cannot be one of ours (tag or member 0).
    pub const fn unpack(key: u64) -> Option<Self> {
        let Some(cluster) = ClusterTag::new((key >> Self::CLUSTER_SHIFT) as u16) else {
            return None;
        };
        let Some(member) = MemberId::new((key >> Self::MEMBER_SHIFT) as u8) else {
            return None;
        };
        Some(Self {
            cluster,
            member,
            epoch: Epoch((key >> Self::EPOCH_SHIFT) as u32 & Epoch::MAX.0),
            flags: KeyFlags::from_bits((key >> Self::FLAGS_SHIFT) as u8),
            beat: Beat(key as u16 & (Beat::MODULUS - 1)),
        })
    }

    /// The key of this member's next beat, saying the same.
    pub const fn beaten(self) -> Self {
        Self {
            beat: self.beat.next(),
            ..self
        }
    }

    /// The key of this member's next beat, saying something new: every beat must be made by this.
    /// `draining` stays as it is, whatever `flags` has: were it lost before the fence is proven,
    /// another member would take this one's hold for a proof that the owner before is drained.
    pub const fn saying(self, epoch: Epoch, flags: KeyFlags) -> Self {
        Self {
            epoch,
            flags: KeyFlags {
                draining: self.flags.draining,
                ..flags
            },
            ..self.beaten()
        }
    }
}

impl fmt::Display for ReservationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#018x} (member {}, epoch {}, {}, beat {})",
            self.pack(),
            self.member,
            self.epoch,
            self.flags,
            self.beat
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_layout_is_fixed() {
        let key = ReservationKey {
            cluster: ClusterTag::new(0xabcd).unwrap(),
            member: MemberId::new(0x12).unwrap(),
            epoch: Epoch::new(0x34567).unwrap(),
            flags: KeyFlags {
                clean: true,
                reachable: true,
                ..KeyFlags::NONE
            },
            beat: Beat::new(0x89a),
        };
        assert_eq!(key.pack(), 0xabcd_1234_5670_589a);
    }

    #[test]
    fn cluster_tags_never_change() {
        // Computed independently: persistent registrations carry them.
        assert_eq!(ClusterTag::of("").number(), 0xf011);
        assert_eq!(ClusterTag::of("lab").number(), 0x7209);
        assert_ne!(ClusterTag::of("lab"), ClusterTag::of("bal"));
        assert_ne!(
            ClusterTag::of_site("lab", "a"),
            ClusterTag::of_site("lab", "b")
        );
        assert_ne!(
            ClusterTag::of_site("la", "ba"),
            ClusterTag::of_site("lab", "a")
        );
    }

    #[test]
    fn beats_wrap_around() {
        let last = Beat::new(Beat::MODULUS - 1);
        assert_eq!(last.next(), Beat::ZERO);
        assert_eq!(Beat::new(3).after(last), 4);
        assert_eq!(last.after(last), 0);
    }

    #[test]
    fn epochs_end_instead_of_repeating() {
        assert_eq!(Epoch::ZERO.next(), Epoch::new(1));
        assert_eq!(Epoch::MAX.next(), None);
    }

    proptest! {
        #[test]
        fn every_key_of_ours_survives_the_wire(raw in any::<u64>()) {
            let ours = raw >> 48 != 0 && (raw >> 40) as u8 != 0;
            let key = ReservationKey::unpack(raw);
            prop_assert_eq!(key.is_some(), ours);
            if let Some(key) = key {
                prop_assert_eq!(key.pack(), raw);
                let json = serde_json::to_string(&key).unwrap();
                prop_assert_eq!(serde_json::from_str::<ReservationKey>(&json).unwrap(), key);
                let beaten = key.beaten();
                prop_assert_ne!(beaten.pack(), raw);
                prop_assert_eq!(beaten.beat.after(key.beat), 1);
            }
        }

        #[test]
        fn every_name_has_a_tag(name in ".*") {
            prop_assert_ne!(ClusterTag::of(&name).number(), 0);
        }
    }
}
