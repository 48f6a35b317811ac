//! The ublk driver's structures and numbers, as in `include/uapi/linux/ublk_cmd.h` of the Linux
//! kernel, and what the bridge makes of them. No system call is made here.

use std::mem::offset_of;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a sector, the unit of offsets and lengths, whatever the logical block size.
const SECTOR: u64 = 512;
/// `queue_id` of a command that is for no queue.
const NO_QUEUE: u16 = u16::MAX;
/// `dev_id` that lets the kernel choose a number.
pub(super) const ANY_ID: u32 = u32::MAX;

/// `UBLK_S_DEV_DEAD`: there is no disk, and no request of it waits any more.
pub(super) const STATE_DEAD: u16 = 0;

/// `UBLK_F_USER_COPY` (Linux 6.5): data goes through reads and writes of the character device, so
/// that the kernel never touches this process's memory on its own.
pub(super) const F_USER_COPY: u64 = 1 << 7;
/// `UBLK_F_NO_AUTO_PART_SCAN`: nobody reads a partition table when the device starts. Older
/// kernels ignore it, and scan.
pub(super) const F_NO_PARTITION_SCAN: u64 = 1 << 18;

/// `UBLK_ATTR_VOLATILE_CACHE`: the kernel sends flushes.
const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// `UBLK_ATTR_FUA`: the kernel sends writes with FUA instead of a write and a flush.
const ATTR_FUA: u32 = 1 << 3;
/// `UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD`.
const PARAM_TYPES: u32 = 1 | 2;

/// `UBLKSRV_IO_BUF_OFFSET`: where in the character device the requests' data begin.
const BUFFERS: u64 = 0x8000_0000;
/// `UBLK_TAG_OFF`: each tag has 32 MiB of offsets.
const TAG_SHIFT: u32 = 25;

/// `UBLK_IO_RES_OK`: a command came back with a request.
pub(super) const RESULT_REQUEST: i32 = 0;
/// `UBLK_IO_RES_ABORT`: it came back without one, for the device is going away.
pub(super) const RESULT_ABORT: i32 = -libc::ENODEV;

/// The commands' numbers, in the encoding of ioctls: the plain numbers are deprecated.
pub(super) mod op {
    use super::{ControlCommand, IoCommand};

    const CONTROL: usize = size_of::<ControlCommand>();
    const IO: usize = size_of::<IoCommand>();

    pub(in super::super) const GET_DEV_INFO: u32 =
        nix::request_code_read!(b'u', 0x02, CONTROL) as u32;
    pub(in super::super) const ADD_DEV: u32 =
        nix::request_code_readwrite!(b'u', 0x04, CONTROL) as u32;
    pub(in super::super) const DEL_DEV: u32 =
        nix::request_code_readwrite!(b'u', 0x05, CONTROL) as u32;
    pub(in super::super) const START_DEV: u32 =
        nix::request_code_readwrite!(b'u', 0x06, CONTROL) as u32;
    pub(in super::super) const SET_PARAMS: u32 =
        nix::request_code_readwrite!(b'u', 0x08, CONTROL) as u32;
    /// Linux 6.9.
    pub(in super::super) const DEL_DEV_ASYNC: u32 =
        nix::request_code_read!(b'u', 0x14, CONTROL) as u32;
    pub(in super::super) const FETCH: u32 = nix::request_code_readwrite!(b'u', 0x20, IO) as u32;
    pub(in super::super) const COMMIT_AND_FETCH: u32 =
        nix::request_code_readwrite!(b'u', 0x21, IO) as u32;
}

/// `struct ublksrv_ctrl_cmd`: a command to `/dev/ublk-control`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ControlCommand {
    device: u32,
    queue: u16,
    /// Set with `address`, by whoever owns the buffer.
    pub(super) length: u16,
    pub(super) address: u64,
    data: u64,
    path_length: u16,
    pad: u16,
    reserved: u32,
}

impl ControlCommand {
    pub(super) fn new(device: u32, data: u64) -> Self {
        let mut command = Self::new_zeroed();
        command.device = device;
        command.queue = NO_QUEUE;
        command.data = data;
        command
    }
}

/// `struct ublksrv_ctrl_dev_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(super) state: u16,
    pad0: u16,
    pub(super) max_bytes: u32,
    pub(super) id: u32,
    server: i32,
    pad1: u32,
    pub(super) flags: u64,
    /// `ublksrv_flags`, which the kernel keeps and gives back: our mark.
    pub(super) token: u64,
    owner: [u32; 2],
    reserved: [u64; 2],
}

/// `struct ublksrv_io_desc`: a request, in memory that the kernel shares.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IoDescriptor {
    op_flags: u32,
    sectors: u32,
    start: u64,
    address: u64,
}

/// `struct ublksrv_io_cmd`: a command to the character device.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct IoCommand {
    queue: u16,
    tag: u16,
    result: i32,
    address: u64,
}

impl IoCommand {
    /// For the only queue, without a buffer: data goes another way, see [`F_USER_COPY`].
    pub(super) fn new(tag: u16, result: i32) -> Self {
        Self {
            queue: 0,
            tag,
            result,
            address: 0,
        }
    }
}

/// `struct ublk_param_basic`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Basic {
    attributes: u32,
    logical_shift: u8,
    physical_shift: u8,
    optimal_shift: u8,
    minimum_shift: u8,
    max_sectors: u32,
    chunk_sectors: u32,
    sectors: u64,
    boundary_mask: u64,
}

/// `struct ublk_param_discard`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Discard {
    alignment: u32,
    granularity: u32,
    max_discard_sectors: u32,
    max_zeroes_sectors: u32,
    max_segments: u16,
    reserved: u16,
}

/// The beginning of `struct ublk_params`, whose length it says itself.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Parameters {
    length: u32,
    types: u32,
    basic: Basic,
    discard: Discard,
    pad: u32,
}

// The layouts are the same on all machines: a different one would ask for something else.
const _: () = assert!(size_of::<ControlCommand>() == 32 && offset_of!(ControlCommand, data) == 16);
const _: () = assert!(size_of::<DeviceInfo>() == 64 && offset_of!(DeviceInfo, token) == 32);
const _: () = assert!(size_of::<IoDescriptor>() == 24 && offset_of!(IoDescriptor, start) == 8);
const _: () = assert!(size_of::<IoCommand>() == 16 && offset_of!(IoCommand, address) == 8);
const _: () = assert!(size_of::<Basic>() == 32 && size_of::<Discard>() == 20);
const _: () = assert!(offset_of!(Parameters, pad) == 60 && size_of::<Parameters>() == 64);

/// What the block layer is told of a volume.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Bytes.
    pub(super) size: u64,
    /// Bytes, a power of two from 512 to the page size.
    pub(super) block_size: u32,
    /// Whether what was written needs a flush to be durable.
    pub(super) volatile_cache: bool,
    /// Most bytes of one read or write.
    pub(super) max_bytes: u32,
    /// Most bytes of one discard or write of zeroes.
    pub(super) max_zeroes_bytes: u64,
}

impl Geometry {
    pub(super) fn parameters(&self) -> Parameters {
        let shift = self.block_size.trailing_zeros() as u8;
        let most = u32::try_from(self.max_zeroes_bytes / SECTOR).unwrap_or(u32::MAX);
        let cache = ATTR_VOLATILE_CACHE | ATTR_FUA;
        Parameters {
            length: offset_of!(Parameters, pad) as u32,
            types: PARAM_TYPES,
            basic: Basic {
                attributes: if self.volatile_cache { cache } else { 0 },
                logical_shift: shift,
                physical_shift: shift,
                optimal_shift: shift,
                minimum_shift: shift,
                max_sectors: (u64::from(self.max_bytes) / SECTOR) as u32,
                chunk_sectors: 0,
                sectors: self.size / SECTOR,
                boundary_mask: 0,
            },
            discard: Discard {
                alignment: 0,
                granularity: self.block_size,
                max_discard_sectors: most,
                max_zeroes_sectors: most,
                max_segments: 1,
                reserved: 0,
            },
            pad: 0,
        }
    }
}

/// A request of the block layer; offsets and lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Read {
        offset: u64,
        length: u32,
    },
    /// `durable` when it is complete, whatever the cache (FUA).
    Write {
        offset: u64,
        length: u32,
        durable: bool,
    },
    Flush,
    /// Also for discards: discarded blocks read as zeros, as they do on a loop device.
    Zeroes {
        offset: u64,
        length: u64,
        deallocate: bool,
    },
    /// One that the bridge did not offer.
    Unknown,
}

impl IoDescriptor {
    pub(super) fn request(self) -> Request {
        /// `UBLK_IO_F_FUA`.
        const FUA: u32 = 1 << 13;
        /// `UBLK_IO_F_NOUNMAP`.
        const NO_UNMAP: u32 = 1 << 15;
        /// `UBLK_IO_OP_*`.
        const READ: u32 = 0;
        const WRITE: u32 = 1;
        const FLUSH: u32 = 2;
        const DISCARD: u32 = 3;
        const WRITE_ZEROES: u32 = 5;
        let operation = self.op_flags & 0xff;
        // What the kernel says of a flush's place means nothing.
        if operation == FLUSH {
            return Request::Flush;
        }
        let Some(offset) = self.start.checked_mul(SECTOR) else {
            return Request::Unknown;
        };
        let wide = u64::from(self.sectors) * SECTOR;
        let set = |flag| self.op_flags & flag != 0;
        match (operation, u32::try_from(wide)) {
            (READ, Ok(length)) => Request::Read { offset, length },
            (WRITE, Ok(length)) => Request::Write {
                offset,
                length,
                durable: set(FUA),
            },
            (DISCARD, _) => Request::Zeroes {
                offset,
                length: wide,
                deallocate: true,
            },
            (WRITE_ZEROES, _) => Request::Zeroes {
                offset,
                length: wide,
                deallocate: !set(NO_UNMAP),
            },
            _ => Request::Unknown,
        }
    }
}

/// Where in the character device the data of the request with this tag begin.
pub(super) fn buffer(tag: u16) -> u64 {
    BUFFERS + (u64::from(tag) << TAG_SHIFT)
}

impl DeviceInfo {
    /// A device with one queue that this process will serve.
    pub(super) fn wanted(depth: u16, max_bytes: u32, token: u64) -> Self {
        let mut info = Self::new_zeroed();
        info.queues = 1;
        info.depth = depth;
        info.max_bytes = max_bytes;
        info.id = ANY_ID;
        info.flags = F_USER_COPY | F_NO_PARTITION_SCAN;
        info.token = token;
        info
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a C compiler makes them from the header.
    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(op::GET_DEV_INFO, 0x8020_7502);
        assert_eq!(op::ADD_DEV, 0xc020_7504);
        assert_eq!(op::DEL_DEV, 0xc020_7505);
        assert_eq!(op::START_DEV, 0xc020_7506);
        assert_eq!(op::SET_PARAMS, 0xc020_7508);
        assert_eq!(op::DEL_DEV_ASYNC, 0x8020_7514);
        assert_eq!(op::FETCH, 0xc010_7520);
        assert_eq!(op::COMMIT_AND_FETCH, 0xc010_7521);
        assert_eq!(buffer(0), 0x8000_0000);
        assert_eq!(buffer(3), 0x8000_0000 + 3 * (32 << 20));
    }

    fn request(op_flags: u32, sectors: u32, start: u64) -> Request {
        let descriptor = IoDescriptor {
            op_flags,
            sectors,
            start,
            address: 0,
        };
        descriptor.request()
    }

    #[test]
    fn requests_are_read_with_their_flags() {
        let (offset, length) = (8192, 4096);
        assert_eq!(request(0, 8, 16), Request::Read { offset, length });
        for (flags, durable) in [(0, false), (1 << 13, true), (1 << 11, false)] {
            let write = Request::Write {
                offset,
                length,
                durable,
            };
            assert_eq!(request(1 | flags, 8, 16), write);
        }
        assert_eq!(request(2, 0, u64::MAX), Request::Flush, "from nowhere");
        let zeroes = |deallocate| Request::Zeroes {
            offset,
            length: 4096,
            deallocate,
        };
        assert_eq!(request(3, 8, 16), zeroes(true));
        assert_eq!(request(5, 8, 16), zeroes(true));
        assert_eq!(request(5 | 1 << 15, 8, 16), zeroes(false));
    }

    #[test]
    fn a_discard_may_be_longer_than_any_write() {
        let length = u64::from(u32::MAX) * 512;
        let zeroes = Request::Zeroes {
            offset: 0,
            length,
            deallocate: true,
        };
        assert_eq!(request(3, u32::MAX, 0), zeroes);
    }

    #[test]
    fn what_was_not_offered_is_no_request() {
        assert_eq!(request(4, 8, 0), Request::Unknown, "write same");
        assert_eq!(request(13, 8, 0), Request::Unknown, "zone append");
        assert_eq!(request(1, u32::MAX, 0), Request::Unknown, "too long");
        assert_eq!(request(0, 8, u64::MAX), Request::Unknown, "too far");
    }

    #[test]
    fn parameters_say_what_the_volume_is() {
        let geometry = Geometry {
            size: 1 << 30,
            block_size: 4096,
            volatile_cache: true,
            max_bytes: 1 << 20,
            max_zeroes_bytes: 1 << 28,
        };
        let told = geometry.parameters();
        assert_eq!((told.length, told.types), (60, 3));
        assert_eq!(told.basic.attributes, 0b1100);
        assert_eq!(told.basic.logical_shift, 12);
        assert_eq!(
            (told.basic.max_sectors, told.basic.sectors),
            (2048, 1 << 21)
        );
        assert_eq!(told.discard.granularity, 4096);
        assert_eq!(
            (told.discard.max_discard_sectors, told.discard.max_segments),
            (1 << 19, 1)
        );
        let durable = Geometry {
            volatile_cache: false,
            ..geometry
        };
        assert_eq!(durable.parameters().basic.attributes, 0);
    }
}
