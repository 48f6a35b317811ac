//! The record of the kernel's target on `storage`: every write and every reservation that was
//! acquired, from its kernel's trace.

use anyhow::{Context, Result, ensure};
use baton::drill::target::Audit;
use tokio::sync::Mutex;

use super::audit::{Auditor, Controllers};
use super::follow::Ended;
use crate::machine::Machine;

/// Where it is collected.
const FILE: &str = "/run/nvmet.trace";

/// Where the collector complains.
const ERRORS: &str = "/run/nvmet.trace.errors";

/// How much is fetched at once, in bytes.
const PIECE: usize = 1 << 20;

/// On I/O queues only. Write, write uncorrectable, write zeroes, dataset management, reservation
/// acquire.
const BEGIN: &str = "
mountpoint -q /sys/kernel/tracing || mount -t tracefs tracefs /sys/kernel/tracing
cd /sys/kernel/tracing
echo 16384 >buffer_size_kb
echo 'qid > 0 && (opcode == 1 || opcode == 4 || opcode == 8 || opcode == 9 || opcode == 17)' >events/nvmet/nvmet_req_init/filter
echo 'qid > 0' >events/nvmet/nvmet_req_complete/filter
echo >trace
echo 1 >events/nvmet/nvmet_req_init/enable
echo 1 >events/nvmet/nvmet_req_complete/enable
";

const END: &str = "
cd /sys/kernel/tracing
echo 0 >events/nvmet/nvmet_req_init/enable
echo 0 >events/nvmet/nvmet_req_complete/enable
";

/// A running trace.
pub struct Trace {
    collector: u32,
    read: Mutex<Read>,
}

/// What was read so far.
struct Read {
    bytes: usize,
    auditor: Auditor,
}

impl Trace {
    /// Begins; the target must be there, and this host hold.
    pub async fn begin(storage: &Machine, agent: &str, owner: String) -> Result<Self> {
        storage.shell(BEGIN).await.context("trace the target")?;
        storage.shell(&format!(": >{FILE}; : >{ERRORS}")).await?;
        let follow = format!("exec {agent} follow >{FILE}");
        let auditor = Auditor::new(owner);
        Ok(Self {
            collector: storage.start(&["sh", "-c", &follow], ERRORS).await?,
            read: Mutex::new(Read { bytes: 0, auditor }),
        })
    }

    /// What the trace tells up to now.
    pub async fn audit(&self, storage: &Machine) -> Result<Audit> {
        let mut read = self.read.lock().await;
        let from = read.bytes + 1;
        let piece = format!("tail -c +{from} {FILE} | head -c {PIECE}; cat {ERRORS} >&2");
        let piece = storage.run(&["sh", "-c", &piece]).await?;
        ensure!(
            piece.stderr.is_empty(),
            "the trace is lost: {}",
            piece.stderr
        );
        // after the trace: whoever wrote has been named before
        let log = "dmesg | grep -a 'controller [0-9]* for subsystem' || true";
        let controllers = Controllers::of(&storage.shell(log).await?);
        let text = piece.stdout;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        read.bytes += whole;
        for line in text[..whole].lines() {
            let ended: Ended = serde_json::from_str(line).context("read the trace")?;
            read.auditor.ended(&ended, &controllers)?;
        }
        match whole + 4096 < PIECE {
            true => Ok(read.auditor.audit()),
            // there is more
            false => {
                drop(read);
                Box::pin(self.audit(storage)).await
            }
        }
    }

    /// Ends it.
    pub async fn end(&self, storage: &Machine) -> Result<()> {
        storage.shell(END).await?;
        let collector = self.collector.to_string();
        storage.ok(&["kill", "-KILL", &collector]).await.map(drop)
    }
}
