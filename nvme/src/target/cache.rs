//! Writes that are acknowledged and not yet in the file: the content of a volatile write cache.
//!
//! Only the map of dirty extents; [`super::storage`] decides when it is written back or lost.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Data below this many bytes is copied, so that an extent does not hold a receive buffer several
/// times its size, which the cache's limit would not count.
const COPY_BELOW: usize = 64 * 1024;
/// Zeros to compare and write with.
static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];

/// What an extent holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Bytes that were written.
    Data(Bytes),
    /// Zeros: Write Zeroes, or deallocated.
    Zeros,
}

/// A dirty extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the namespace, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// What it holds.
    pub content: Content,
}

impl Extent {
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    /// The part of this extent within `from..to`, which overlaps it.
    fn slice(&self, from: u64, to: u64) -> Self {
        let (from, to) = (from.max(self.offset), to.min(self.end()));
        let content = match &self.content {
            Content::Zeros => Content::Zeros,
            Content::Data(data) => {
                let start = (from - self.offset) as usize;
                Content::Data(data.slice(start..start + (to - from) as usize))
            }
        };
        Self {
            offset: from,
            length: to - from,
            content,
        }
    }

    fn data_len(&self) -> usize {
        match &self.content {
            Content::Data(data) => data.len(),
            Content::Zeros => 0,
        }
    }

    /// Copies what overlaps `buffer`, which begins at `offset` of the namespace.
    pub fn copy_to(&self, offset: u64, buffer: &mut [u8]) {
        let end = offset + buffer.len() as u64;
        if self.end() <= offset || self.offset >= end {
            return;
        }
        let part = self.slice(offset, end);
        let start = (part.offset - offset) as usize;
        let target = &mut buffer[start..start + part.length as usize];
        match &part.content {
            Content::Data(data) => target.copy_from_slice(data),
            Content::Zeros => target.fill(0),
        }
    }
}

/// Extents that do not overlap, in order.
#[derive(Clone, Debug, Default)]
pub struct DirtyMap {
    extents: BTreeMap<u64, Extent>,
    data_bytes: usize,
}

impl DirtyMap {
    /// Whether nothing is dirty.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    /// Bytes of data held; extents of zeros hold none.
    pub fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// How many extents there are.
    pub fn extents(&self) -> usize {
        self.extents.len()
    }

    /// Puts an extent over whatever was there. An empty one changes nothing.
    pub fn insert(&mut self, mut extent: Extent) {
        if extent.length == 0 {
            return;
        }
        self.cut(extent.offset, extent.end());
        if let Content::Data(data) = &extent.content
            && data.len() < COPY_BELOW
        {
            extent.content = Content::Data(Bytes::copy_from_slice(data));
        }
        self.put(extent);
    }

    /// Takes `from..to` out.
    fn cut(&mut self, from: u64, to: u64) {
        for old in self.overlapping(from, to) {
            self.extents.remove(&old.offset);
            self.data_bytes -= old.data_len();
            if old.offset < from {
                self.put(old.slice(old.offset, from));
            }
            if old.end() > to {
                self.put(old.slice(to, old.end()));
            }
        }
    }

    fn put(&mut self, extent: Extent) {
        self.data_bytes += extent.data_len();
        self.extents.insert(extent.offset, extent);
    }

    /// The extents that overlap `from..to`, whole. Cheap: the bytes are shared.
    pub fn overlapping(&self, from: u64, to: u64) -> Vec<Extent> {
        let before = self.extents.range(..from).next_back();
        before
            .into_iter()
            .chain(self.extents.range(from..to))
            .map(|(_, extent)| extent)
            .filter(|extent| extent.end() > from && extent.offset < to)
            .cloned()
            .collect()
    }

    /// All extents in order.
    pub fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.values()
    }
}

/// Calls `write` with the offsets and the bytes of `length` zeros from `offset`.
pub fn write_zeros<E>(
    mut offset: u64,
    mut length: u64,
    mut write: impl FnMut(u64, &[u8]) -> Result<(), E>,
) -> Result<(), E> {
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        write(offset, &ZEROS[..part as usize])?;
        offset += part;
        length -= part;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    const SIZE: usize = 64;

    proptest! {
        /// Whatever is inserted, reading through the map is reading an array that was written in
        /// the same order, and the extents never overlap.
        #[test]
        fn behaves_like_an_array(writes in proptest::collection::vec(
            (0..SIZE as u64, 0..SIZE as u64, any::<Option<u8>>()), 0..40)) {
            let mut map = DirtyMap::default();
            let mut model = [0xffu8; SIZE];
            for (offset, length, fill) in writes {
                let length = length.min(SIZE as u64 - offset);
                let range = offset as usize..(offset + length) as usize;
                model[range.clone()].fill(fill.unwrap_or(0));
                let content = match fill {
                    Some(byte) => Content::Data(vec![byte; range.len()].into()),
                    None => Content::Zeros,
                };
                map.insert(Extent { offset, length, content });
            }
            let mut read = [0xffu8; SIZE];
            for extent in map.overlapping(0, SIZE as u64) {
                extent.copy_to(0, &mut read);
            }
            prop_assert_eq!(read, model);
            let ends: Vec<_> = map.iter().map(|e| (e.offset, e.end())).collect();
            prop_assert!(ends.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            prop_assert_eq!(map.data_bytes(), map.iter().map(Extent::data_len).sum::<usize>());
        }
    }
}
