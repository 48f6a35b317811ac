//! Where the kernel and its modules are, and in which order modules are loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A kernel unpacked from its packages.
pub struct Kernel {
    /// As `uname -r` says.
    pub version: String,
    /// The compressed image.
    pub image: PathBuf,
    /// The folder with `modules.dep`.
    pub modules: PathBuf,
    /// Path of each module's file to those it needs, as in `modules.dep`.
    needs: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    /// The one kernel below `folder`.
    pub fn find(folder: &Path) -> Result<Self> {
        let all = folder.join("usr/lib/modules");
        let entries = std::fs::read_dir(&all).with_context(|| format!("read {}", all.display()))?;
        let found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        ensure!(found.len() == 1, "{} has not one kernel", all.display());
        let modules = found[0].clone();
        let version = modules.file_name().unwrap_or_default();
        let dep = modules.join("modules.dep");
        let text = std::fs::read_to_string(&dep)
            .with_context(|| format!("read {} (made by depmod)", dep.display()))?;
        Ok(Self {
            version: version.to_string_lossy().into_owned(),
            image: modules.join("vmlinuz"),
            needs: text.lines().filter_map(needs).collect(),
            modules,
        })
    }

    /// The files of `wanted` and all they need, each after those that it needs. What is not there
    /// as a module is taken to be built in.
    pub fn in_order(&self, wanted: &[&str]) -> Vec<&str> {
        let mut order = Vec::new();
        for name in wanted {
            let file = self.needs.keys().find(|file| module_name(file) == *name);
            if let Some(file) = file {
                self.add(file, &mut order);
            }
        }
        order
    }

    fn add<'a>(&'a self, file: &'a str, order: &mut Vec<&'a str>) {
        if order.contains(&file) {
            return;
        }
        for needed in self.needs.get(file).into_iter().flatten() {
            self.add(needed, order);
        }
        order.push(file);
    }
}

/// One line of `modules.dep`: `path: path path …`.
fn needs(line: &str) -> Option<(String, Vec<String>)> {
    let (file, needed) = line.split_once(':')?;
    let needed = needed.split_whitespace().map(str::to_owned).collect();
    Some((file.to_owned(), needed))
}

/// `kernel/drivers/net/virtio_net.ko.xz` is `virtio_net`.
pub fn module_name(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split('.').next().unwrap_or(name)
}
