//! The ext4 label by which a volume says, before it is mounted, whose it is and whether it is finished.

use std::fmt;

use sha2::{Digest, Sha256};

use crate::hex::hex;

/// Whose a volume is: an ext4 label of `baton:` and ten hexadecimal digits of the SHA-256 of the
/// cluster's and the site's names.
///
/// ext4 has 16 bytes for a label, too few for names, so the names themselves stand in the
/// [marker](super::Marker) on the filesystem and the label only keeps other volumes out early.
///
/// While a volume is being prepared for the first time its label begins with `baton?`: nothing on it
/// ever served anybody, so that preparing may begin anew.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label {
    digits: String,
}

impl Label {
    /// The label of the volume of this site of this cluster.
    pub fn of(cluster: &str, site: &str) -> Self {
        let mut hash = Sha256::new();
        // The length keeps ("ab", "c") and ("a", "bc") apart.
        hash.update((cluster.len() as u64).to_be_bytes());
        hash.update(cluster.as_bytes());
        hash.update(site.as_bytes());
        let digits = hex(&hash.finalize()[..5]);
        Self { digits }
    }

    /// The label of the finished volume, exactly 16 bytes.
    pub fn finished(&self) -> String {
        format!("baton:{}", self.digits)
    }

    /// The label while the volume is being prepared, exactly 16 bytes.
    pub fn unfinished(&self) -> String {
        format!("baton?{}", self.digits)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.finished())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_the_label_exactly_and_differs_by_cluster_and_site() {
        let label = Label::of("orders", "north");
        assert_eq!(label.finished().len(), 16);
        assert_eq!(label.unfinished().len(), 16);
        assert_ne!(label.finished(), label.unfinished());
        assert_eq!(label, Label::of("orders", "north"));
        for (cluster, site) in [("order", "north"), ("orders", "south"), ("ordersn", "orth")] {
            assert_ne!(label, Label::of(cluster, site));
        }
    }
}
