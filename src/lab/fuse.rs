//! How many requests wait in a FUSE connection: those that its server has not answered.

use std::io;
use std::path::Path;
use std::process::Stdio;

use crate::lab::process::Process;
use crate::mount_namespace;

/// A FUSE server's connection in the kernel's FUSE control filesystem.
#[derive(Clone, Debug)]
pub struct Connection {
    /// None where the kernel does not tell (`fuse_connection` in `fdinfo` came with Linux 6.14):
    /// then every connection counts.
    number: Option<u32>,
}

impl Connection {
    /// The connection that `server` serves.
    pub fn of(server: Process) -> io::Result<Self> {
        let mut serves = false;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", server.pid))? {
            let entry = entry?;
            // a descriptor may be closed while we look
            if !std::fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("/dev/fuse")) {
                continue;
            }
            serves = true;
            let info = format!(
                "/proc/{}/fdinfo/{}",
                server.pid,
                entry.file_name().display()
            );
            if let Some(number) = number(&std::fs::read_to_string(info)?) {
                return Ok(Self {
                    number: Some(number),
                });
            }
        }
        match serves {
            true => Ok(Self { number: None }),
            false => Err(io::Error::other("it has not opened /dev/fuse")),
        }
    }

    /// Its number, where the kernel tells.
    pub fn number(&self) -> Option<u32> {
        self.number
    }

    /// Whether at least one request waits. Reads the control filesystem through a mount of its own
    /// that ends with the command: few machines have it mounted, and nothing shall be left.
    pub fn waits(&self) -> io::Result<bool> {
        let script = r#"mount -t fusectl none "$1" 2>/dev/null; cat "$1"/$2/waiting"#;
        let number = self
            .number
            .map_or("*".to_owned(), |number| number.to_string());
        let output = mount_namespace::script(script)
            .args([CONTROL, &number])
            .stdin(Stdio::null())
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let counts: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match counts {
            Ok(counts) if !counts.is_empty() => Ok(counts.iter().any(|count| *count > 0)),
            Ok(_) | Err(_) => Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            )),
        }
    }
}

/// Where the control filesystem is mounted.
pub const CONTROL: &str = "/sys/fs/fuse/connections";

/// The connection's number in the `fdinfo` of an open `/dev/fuse`.
fn number(fdinfo: &str) -> Option<u32> {
    let fields = fdinfo.lines().filter_map(|line| line.split_once(':'));
    let mut numbers = fields.filter(|(name, _)| *name == "fuse_connection");
    numbers.next()?.1.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_connection_if_it_is_new_enough() {
        let new = "pos:\t0\nflags:\t02100002\nmnt_id:\t102\nino:\t90\nfuse_connection:\t41\n";
        assert_eq!(number(new), Some(41));
        assert_eq!(number("pos:\t0\nflags:\t02100002\n"), None);
    }
}
