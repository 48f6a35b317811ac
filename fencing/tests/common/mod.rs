//! Members, keys and limits that the tests share.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::time::Duration;

use fencing::{
    Beat, Claim, ClusterTag, Epoch, KeyFlags, Limits, MemberId, Mono, ReservationKey, Victim,
};
use nvme::HostId;

/// How long a command can live in the tests' worlds: 3 × 5 s + 10 s.
pub const DRAIN_WAIT: Duration = Duration::from_secs(25);

pub fn host(number: u8) -> HostId {
    HostId::from_bytes([number; 16])
}

pub fn cluster() -> ClusterTag {
    ClusterTag::of("lab")
}

/// The key of member `member`, whose host has the same number.
pub fn key(member: u8, epoch: u32, beat: u16) -> ReservationKey {
    ReservationKey {
        cluster: cluster(),
        member: MemberId::new(member).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        flags: KeyFlags::NONE,
        beat: Beat::new(beat),
    }
}

pub fn at(millis: u64) -> Mono {
    Mono::from_millis(millis)
}

pub fn claim(member: u8, epoch: u32) -> Claim {
    Claim {
        host: host(member),
        cluster: cluster(),
        member: MemberId::new(member).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        flags: KeyFlags::NONE,
        former_controllers_gone: None,
    }
}

pub fn victim(member: u8, epoch: u32) -> Victim {
    Victim {
        host: host(member),
        member: MemberId::new(member).unwrap(),
        epoch: Epoch::new(epoch).unwrap(),
        clean: false,
    }
}

pub fn limits(now: Mono) -> Limits {
    Limits {
        deadline: now + Duration::from_secs(3),
        retry_pause: Duration::from_millis(50),
        drain_wait: Some(DRAIN_WAIT),
        beat: Duration::from_secs(1),
        verify_within: Duration::from_secs(2),
        require_persistence: false,
    }
}
