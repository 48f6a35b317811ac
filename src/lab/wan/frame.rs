//! Checksums of Ethernet frames that a sending kernel left to its device. A frame from a packet
//! socket has what the kernel put there; one that is sent through a packet socket must be complete.

/// Lengths and offsets of an Ethernet header (IEEE 802.3) and of IPv4 (RFC 791), in bytes.
const ETHERNET: usize = 14;
const IPV4_MIN: usize = 20;

/// Computes the checksum of a TCP or UDP segment in an IPv4 packet anew. Any other frame, a fragment
/// among them, is left as it is: no device completes those.
pub fn complete(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(ETHERNET - 2..) else {
        return;
    };
    let Some(([0x08, 0x00], packet)) = packet.split_first_chunk_mut::<2>().map(|(t, p)| (*t, p))
    else {
        return;
    };
    if packet.len() < IPV4_MIN || u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    // where the checksum lies in the segment (RFC 9293, RFC 768)
    let (protocol, field) = match packet[9] {
        6 => (6, 16),
        17 => (17, 6),
        _ => return,
    };
    let mut addresses = [0; 8];
    addresses.copy_from_slice(&packet[12..20]);
    let Some(segment) = packet.get_mut(header..total) else {
        return;
    };
    if segment.len() < field + 2 {
        return;
    }
    segment[field..field + 2].fill(0);
    let length = (total - header) as u64; // at most 65535
    let sum = folded(sum(&addresses) + protocol + length + sum(segment));
    // a checksum of 0 says "none" in UDP (RFC 768); in TCP both mean the same
    let sum = if sum == 0 { 0xffff } else { sum };
    segment[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(2);
    let odd = pairs
        .remainder()
        .first()
        .map_or(0, |last| u64::from(*last) << 8);
    pairs
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum::<u64>()
        + odd
}

/// The Internet checksum of a sum of words (RFC 1071).
fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16) // at most 0xffff by now
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram "hi" from 10.0.0.1:1 to 10.0.0.2:2, its checksum (0x6e... below) left out.
    fn datagram() -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0]);
        frame.extend([0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 1, 0, 2, 0, 10, 0, 0, b'h', b'i']);
        frame
    }

    #[test]
    fn a_segment_s_checksum_makes_its_sum_right_whatever_was_there() {
        // 0x0a00 + 1 + 0x0a00 + 2 + 17 + 10 + 1 + 2 + 10 + 0x6869 = 0x7c94
        let mut frame = datagram();
        frame[40] = 0x5a;
        complete(&mut frame);
        assert_eq!(frame[40..42], (!0x7c94_u16).to_be_bytes());
        let once = frame.clone();
        complete(&mut frame);
        assert_eq!(frame, once);
    }

    #[test]
    fn what_is_no_whole_segment_is_left_as_it_is() {
        let change = |at: usize, to: u8| {
            let mut frame = datagram();
            frame[at] = to;
            frame
        };
        let fragment = change(20, 0x20);
        let arp = change(13, 6);
        let icmp = change(23, 1);
        let longer_than_it_is = change(17, 90);
        let short = datagram()[..20].to_vec();
        for frame in [fragment, arp, icmp, longer_than_it_is, short, vec![1, 2]] {
            let mut after = frame.clone();
            complete(&mut after);
            assert_eq!(after, frame);
        }
    }
}
