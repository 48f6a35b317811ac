//! The ext4 label by which a volume names its cluster before it is mounted.

use std::fmt;

use sha2::{Digest, Sha256};

/// An ext4 label: `baton:` and ten hexadecimal digits of the cluster name's SHA-256.
///
/// ext4 has 16 bytes for a label, too few for a name, so the name itself stands in the
/// [marker](super::marker) on the filesystem and the label only keeps other clusters out early.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Label(String);

impl Label {
    /// The label of all volumes of the cluster with this name.
    pub fn of_cluster(cluster: &str) -> Self {
        let digest = Sha256::digest(cluster.as_bytes());
        let hex: String = digest[..5]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self(format!("baton:{hex}"))
    }

    /// The label as text, exactly 16 bytes.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_the_label_exactly_and_differs_by_cluster() {
        let label = Label::of_cluster("orders");
        assert_eq!(label.as_str().len(), 16);
        assert_eq!(label, Label::of_cluster("orders"));
        assert_ne!(label, Label::of_cluster("order"));
    }
}
