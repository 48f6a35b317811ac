//! What a drill found: `report.json` for machines, a timeline for people.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::verify::Writes;

/// Everything that a drill reports. The field names are an interface: scripts read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// Whether nothing failed.
    pub passed: bool,
    /// What failed, in words; empty when passed.
    pub failures: Vec<String>,
    /// The volume's epoch before the fault.
    pub epoch_before: u32,
    /// The volume's epoch at the end.
    pub epoch_after: u32,
    /// The longest interval around the fault without any acknowledged write, in milliseconds.
    pub write_gap_ms: u64,
    /// From the fault until a member decided to take over; none where nobody did.
    pub detection_ms: Option<u64>,
    /// The steps of the handover or take-over, in the order of their starts.
    pub phases: Vec<Phase>,
    /// The ledger against the table.
    pub writes: Writes,
    /// The fence; none where nobody was fenced.
    pub fence: Option<Fence>,
    /// The volume and the database at rest; with two sites those of the primary at the end.
    pub checks: Checks,
    /// What only drills of two sites find.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zones: Option<Zones>,
}

/// What a drill of two sites found beside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zones {
    /// The primary's site before the fault and at the end.
    pub primary: [String; 2],
    /// The cluster's term before the fault and at the end.
    pub term: [u64; 2],
    /// The primary's timeline before the fault and at the end; 0 where it was not found out.
    pub timeline: [u32; 2],
    /// The ledger against the replica's table, after it had caught up.
    pub replica_writes: Writes,
    /// The replica's volume and database at rest.
    pub replica_checks: Checks,
    /// What else was seen, in words.
    pub notes: Vec<String>,
}

/// One step of a handover or take-over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Phase {
    /// The step: checkpoint, stop, unmount, announce, fence, mount, start, first-write.
    pub name: String,
    /// The member that did it.
    pub member: String,
    /// When it began, in milliseconds after the fault; negative if before.
    pub start_ms: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// How the former owner was kept from writing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The mechanism, such as `reservation`.
    pub kind: String,
    /// Whether the member had its proof, and the target's own record agrees: no write of a fenced
    /// host was applied after its fence.
    pub verified: bool,
    /// The key that was preempted, as the target saw it.
    pub preempted_key: Option<String>,
    /// Writes of fenced hosts that the target refused.
    pub refused_writes: u64,
}

/// The checks of the volume and the database at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checks {
    /// `e2fsck -fn` on the namespace.
    pub e2fsck: Check,
    /// `pg_checksums --check`.
    pub checksums: Check,
    /// `pg_amcheck`, tables and indexes compared.
    pub amcheck: Check,
}

/// The result of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// It ran and found nothing.
    Clean,
    /// It ran and found damage; the failures say which.
    Damaged,
    /// It could not run; the failures say why.
    NotRun,
}

/// How wide the timeline's bars are, in characters.
const BAR_WIDTH: i64 = 40;

impl Report {
    /// Writes `report.json` and `report.txt` into `dir`, which is made if it is missing.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let json = serde_json::to_string_pretty(self).map_err(std::io::Error::other)?;
        std::fs::write(dir.join("report.json"), json + "\n")?;
        std::fs::write(dir.join("report.txt"), self.to_string())
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::Damaged => "DAMAGED",
            Self::NotRun => "NOT RUN",
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.passed { "passed" } else { "FAILED" };
        writeln!(f, "{}: {verdict}", self.scenario)?;
        for failure in &self.failures {
            writeln!(f, "  FAILURE    {failure}")?;
        }
        writeln!(f, "  write gap  {} ms", self.write_gap_ms)?;
        if let Some(detection) = self.detection_ms {
            writeln!(f, "  detection  {detection} ms after the fault")?;
        }
        writeln!(
            f,
            "  epoch      {} -> {}",
            self.epoch_before, self.epoch_after
        )?;
        let Writes {
            acknowledged,
            lost,
            duplicated,
            unknown,
        } = self.writes;
        writeln!(
            f,
            "  writes     {acknowledged} acknowledged, {lost} lost, {duplicated} duplicated, {unknown} of unknown fate"
        )?;
        match &self.fence {
            Some(fence) => writeln!(f, "  fence      {fence}")?,
            None => writeln!(f, "  fence      none, nobody was fenced")?,
        }
        writeln!(f, "  checks     {}", self.checks)?;
        if let Some(zones) = &self.zones {
            zones.fmt(f)?;
        }
        self.timeline(f)
    }
}

impl fmt::Display for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            e2fsck,
            checksums,
            amcheck,
        } = self;
        write!(
            f,
            "e2fsck {e2fsck}, checksums {checksums}, amcheck {amcheck}"
        )
    }
}

impl fmt::Display for Zones {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            primary: [before, after],
            term,
            timeline,
            replica_writes,
            replica_checks,
            notes,
        } = self;
        writeln!(f, "  primary    site {before} -> site {after}")?;
        writeln!(f, "  term       {} -> {}", term[0], term[1])?;
        writeln!(f, "  timeline   {} -> {}", timeline[0], timeline[1])?;
        let Writes {
            acknowledged: _,
            lost,
            duplicated,
            unknown: _,
        } = replica_writes;
        writeln!(
            f,
            "  replica    {lost} lost, {duplicated} duplicated; {replica_checks}"
        )?;
        notes
            .iter()
            .try_for_each(|note| writeln!(f, "  seen       {note}"))
    }
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verified = if self.verified {
            "verified"
        } else {
            "NOT VERIFIED"
        };
        write!(f, "{}, {verified}", self.kind)?;
        if let Some(key) = &self.preempted_key {
            write!(f, ", key {key} preempted")?;
        }
        write!(f, ", {} writes refused", self.refused_writes)
    }
}

impl Report {
    /// One line a phase, with a bar on the common time axis.
    fn timeline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |phase: &Phase| phase.start_ms.saturating_add_unsigned(phase.duration_ms);
        let (Some(first), Some(last)) = (
            self.phases.iter().map(|p| p.start_ms).min(),
            self.phases.iter().map(end).max(),
        ) else {
            return Ok(());
        };
        let first = first.min(0);
        let span = (last - first).max(1);
        writeln!(
            f,
            "\n  {:<12} {:<8} {:>9} {:>9}",
            "phase", "member", "start", "took"
        )?;
        for phase in &self.phases {
            let column = |at: i64| (at - first) * BAR_WIDTH / span;
            let (from, to) = (column(phase.start_ms), column(end(phase)));
            let (from, length) = (from.min(BAR_WIDTH - 1), (to - from).max(1));
            let bar = " ".repeat(from.unsigned_abs() as usize)
                + &"#".repeat(length.min(BAR_WIDTH - from).unsigned_abs() as usize);
            let Phase {
                name,
                member,
                start_ms,
                duration_ms,
            } = phase;
            writeln!(
                f,
                "  {name:<12} {member:<8} {start_ms:>6} ms {duration_ms:>6} ms |{bar:<40}|"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phase(name: &str, start_ms: i64, duration_ms: u64) -> Phase {
        Phase {
            name: name.into(),
            member: "b".into(),
            start_ms,
            duration_ms,
        }
    }

    fn crash() -> Report {
        Report {
            scenario: "crash".into(),
            passed: true,
            failures: vec![],
            epoch_before: 1,
            epoch_after: 2,
            write_gap_ms: 2400,
            detection_ms: Some(2010),
            phases: vec![
                phase("fence", 2012, 12),
                phase("mount", 2030, 20),
                phase("start", 2050, 300),
            ],
            writes: Writes {
                acknowledged: 9000,
                lost: 0,
                duplicated: 0,
                unknown: 4,
            },
            fence: Some(Fence {
                kind: "reservation".into(),
                verified: true,
                preempted_key: Some("0x1a2b010000100007".into()),
                refused_writes: 3,
            }),
            checks: Checks {
                e2fsck: Check::Clean,
                checksums: Check::Clean,
                amcheck: Check::NotRun,
            },
            zones: None,
        }
    }

    #[test]
    fn the_json_is_an_interface() {
        let expected = r#"{"scenario":"crash","passed":true,"failures":[],"epoch_before":1,"epoch_after":2,"write_gap_ms":2400,"detection_ms":2010,"phases":[{"name":"fence","member":"b","start_ms":2012,"duration_ms":12},{"name":"mount","member":"b","start_ms":2030,"duration_ms":20},{"name":"start","member":"b","start_ms":2050,"duration_ms":300}],"writes":{"acknowledged":9000,"lost":0,"duplicated":0,"unknown":4},"fence":{"kind":"reservation","verified":true,"preempted_key":"0x1a2b010000100007","refused_writes":3},"checks":{"e2fsck":"clean","checksums":"clean","amcheck":"not_run"}}"#;
        assert_eq!(serde_json::to_string(&crash()).unwrap(), expected);
        assert_eq!(serde_json::from_str::<Report>(expected).unwrap(), crash());
    }

    #[test]
    fn the_text_shows_the_phases_on_one_axis() {
        let expected = "\
crash: passed
  write gap  2400 ms
  detection  2010 ms after the fault
  epoch      1 -> 2
  writes     9000 acknowledged, 0 lost, 0 duplicated, 4 of unknown fate
  fence      reservation, verified, key 0x1a2b010000100007 preempted, 3 writes refused
  checks     e2fsck clean, checksums clean, amcheck NOT RUN

  phase        member       start      took
  fence        b          2012 ms     12 ms |                                  #     |
  mount        b          2030 ms     20 ms |                                  #     |
  start        b          2050 ms    300 ms |                                  ######|
";
        assert_eq!(crash().to_string(), expected);
    }

    #[test]
    fn what_two_sites_found_is_told_beside() {
        let report = Report {
            phases: vec![],
            zones: Some(Zones {
                primary: ["a".into(), "b".into()],
                term: [1, 2],
                timeline: [1, 2],
                replica_writes: Writes::default(),
                replica_checks: crash().checks,
                notes: vec!["a note".into()],
            }),
            ..crash()
        };
        let told = "\
  primary    site a -> site b
  term       1 -> 2
  timeline   1 -> 2
  replica    0 lost, 0 duplicated; e2fsck clean, checksums clean, amcheck NOT RUN
  seen       a note
";
        assert!(report.to_string().ends_with(told), "{report}");
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn a_failed_report_says_why_and_both_files_are_written() {
        let report = Report {
            passed: false,
            failures: vec!["2 acknowledged rows are lost".into()],
            detection_ms: None,
            phases: vec![],
            fence: None,
            ..crash()
        };
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out/crash");
        report.write(&out).unwrap();
        let text = std::fs::read_to_string(out.join("report.txt")).unwrap();
        assert!(text.starts_with("crash: FAILED\n  FAILURE    2 acknowledged rows are lost\n"));
        assert!(text.contains("none, nobody was fenced"));
        let json = std::fs::read_to_string(out.join("report.json")).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }
}
