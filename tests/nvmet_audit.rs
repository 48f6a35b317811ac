//! The record that the drills between virtual machines keep of the kernel's target, from lines of its
//! trace and log as they looked (Linux 7.3).

#[path = "vm/drill/audit.rs"]
#[allow(dead_code, reason = "the virtual machines' program uses the rest")]
mod audit;
#[path = "vm/drill/follow.rs"]
#[allow(dead_code, reason = "the virtual machines' program uses the rest")]
mod follow;

use audit::{Auditor, Controllers};
use follow::{Ended, Pairs, What};

const A: &str = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b";
const B: &str = "8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0c";

const LOG: &str = "\
[   30.644114] nvmet: Created nvm controller 1 for subsystem nqn.2026-11.dev.baton:vm for NQN nqn.2014-08.org.nvmexpress:uuid:8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b.
[   31.897392] nvmet: Created nvm controller 2 for subsystem nqn.2026-11.dev.baton:vm for NQN nqn.2014-08.org.nvmexpress:uuid:8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0c.
[   64.177083] nvmet: Created nvm controller 1 for subsystem nqn.2026-11.dev.baton:vm for NQN nqn.2014-08.org.nvmexpress:uuid:8e6fca0e-90b3-4b0b-a3f0-3a1f3f0e0c0b.";

fn init(controller: u32, command: u32, what: &str) -> String {
    format!(
        "    kworker/0:2H-175     [000] .....   165.368404: nvmet_req_init: nvmet{controller}: \
         disk=/dev/vda, qid=1, cmdid={command}, nsid=1, flags=0x40, meta=0x0, cmd=({what})"
    )
}

fn complete(at: &str, controller: u32, command: u32, status: &str) -> String {
    format!(
        "    kworker/0:2H-175     [000] .....   {at}: nvmet_req_complete: nvmet{controller}: \
         disk=/dev/vda, qid=1, cmdid={command}, res=0x0, status={status}"
    )
}

const WRITE: &str = "nvme_cmd_write, slba=294000, len=15, ctrl=0x0, dsmgmt=0, reftag=0";
const PREEMPT: &str =
    "nvme_cmd_resv_acquire, racqa=2:preempt and abort, iekey=0, rtype=1:write exclusive";

fn follow(lines: &[String]) -> Vec<Ended> {
    let mut pairs = Pairs::default();
    let each = lines.iter().map(|line| pairs.line(line).unwrap());
    each.flatten().collect()
}

#[test]
fn the_trace_tells_what_ended_and_how() {
    let told = follow(&[
        "a line of another kind".to_owned(),
        init(1, 36, WRITE),
        init(2, 36, PREEMPT),
        init(1, 37, "nvme_cmd_resv_acquire, cdw10=01 01 00 00 00 00"),
        complete("165.368811", 1, 36, "0x0"),
        complete("165.400000", 2, 36, "0x0"),
        complete("165.500000", 1, 37, "0x4083"),
        // a flush or a read; a write that was refused before its beginning was traced
        complete("165.600000", 1, 38, "0x0"),
        complete("165.700000", 1, 39, "0x6083"),
    ]);
    let told: Vec<_> = told
        .iter()
        .map(|ended| (ended.controller, ended.what, ended.status))
        .collect();
    let expected = [
        (1, What::Write, 0),
        (2, What::Acquire(2), 0),
        (1, What::Acquire(1), 0x83),
        (1, What::Write, 0x83),
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_fenced_host_s_writes_are_refused_or_violations() {
    let controllers = Controllers::of(LOG);
    let mut auditor = Auditor::new(A.to_owned());
    let mut take = |lines: &[String]| {
        for ended in follow(lines) {
            auditor.ended(&ended, &controllers).unwrap();
        }
        auditor.audit()
    };
    let write = |controller, status| {
        [
            init(controller, 1, WRITE),
            complete("165.4", controller, 1, status),
        ]
    };
    take(&write(1, "0x0"));
    let fenced = take(&[init(2, 2, PREEMPT), complete("165.5", 2, 2, "0x0")]);
    assert_eq!((fenced.violations, fenced.fences.len()), (0, 1));
    let fence = &fenced.fences[0];
    assert_eq!((fence.victim.as_str(), fence.by.as_str()), (A, B));
    let refused = take(&[complete("165.6", 1, 3, "0x4083")]);
    assert_eq!(refused.fences[0].refused_writes, 1);
    assert_eq!(take(&write(2, "0x0")).violations, 0);
    assert_eq!(take(&write(1, "0x0")).violations, 1);
    // it holds again
    take(&[init(1, 4, PREEMPT), complete("166.0", 1, 4, "0x0")]);
    assert_eq!(take(&write(1, "0x0")).violations, 1);
    let stranger = Ended {
        at: 1.0,
        controller: 9,
        what: What::Write,
        status: 0,
    };
    assert!(auditor.ended(&stranger, &controllers).is_err());
}
