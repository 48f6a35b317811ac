//! Baton's backend for the kernel's initiator against the kernel's target: every command, the end
//! and the remaking of the block device, and what becomes of the paths; multipath on and off.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::machine::Machine;
use crate::machines::Machines;
use crate::nvmet::{NAMESPACE_UUID, PORT, SUBSYSTEM, Target};
use crate::report::Outcome;

/// How a node chooses the volume.
const BY_UUID: [&str; 2] = ["--identifier", NAMESPACE_UUID];
const BY_NUMBER: [&str; 2] = ["--nsid", "1"];

/// RESCAP of nvmet: all types and IEKEY of NVMe 1.3, no persistence.
const NVMET_RESCAP: u64 = 0xfe;

pub async fn backend(machines: &mut Machines) -> Result<Outcome> {
    let target = Target::up(&machines.storage).await?;
    let (a, b) = (&machines.node_a, &machines.node_b);
    for multipath in ["Y", "N"] {
        let loaded = tokio::try_join!(load(a, multipath), load(b, multipath));
        loaded.with_context(|| format!("load nvme_core with multipath={multipath}"))?;
        fences(a, b, &target).await?;
        remakes(a, &target).await?;
        follows_paths(a, &target).await?;
        refuses_a_second_host(a, b, &target).await?;
    }
    tokio::try_join!(load(a, "Y"), load(b, "Y"))?;
    target.stop().await?;
    Ok(Outcome {
        fence: Some("preempt and abort".to_owned()),
        refused_writes: Some(2),
        notes: vec!["multipath on and off".to_owned()],
        ..Outcome::default()
    })
}

/// Loads the initiator anew, with this parameter; no controller may be left.
async fn load(node: &Machine, multipath: &str) -> Result<()> {
    let script = format!(
        "modprobe -r nvme_tcp nvme_fabrics nvme_core
         modprobe nvme_core multipath={multipath}
         modprobe nvme-tcp
         [ \"$(cat /sys/module/nvme_core/parameters/multipath)\" = {multipath} ]"
    );
    node.shell(&script).await.map(drop)
}

/// Every reservation command; a fenced host's write is refused.
async fn fences(a: &Machine, b: &Machine, target: &Target<'_>) -> Result<()> {
    let script = "attach identify cache register:a1 acquire:a1 report flush write:first paths";
    let said = Said::of(a, target, BY_UUID, script).await?;
    said.all_ok()?;
    let identified = said.value("identify")?;
    ensure!(
        identified["uuid"] == NAMESPACE_UUID
            && identified["nsid"] == 1
            && identified["reservation_capabilities"] == NVMET_RESCAP
            && identified["keep_alive_timeout"]["secs"] == 5,
        "identify says {identified}"
    );
    let report = said.value("report")?;
    ensure!(holds(report, a, 0xa1), "the report says {report}");
    ensure!(said.value("paths")?["usable"] == 1, "{said:?}");
    let script = "attach write:before register:b2 replace:b2:b3 acquire:b3 preempt:b3:a1 report \
                  write:second read";
    let said = Said::of(b, target, BY_NUMBER, script).await?;
    said.conflict("write:before")?;
    said.conflict("acquire:b3")?;
    let report = said.value("report")?;
    ensure!(holds(report, b, 0xb3), "the report says {report}");
    ensure!(said.value("read")? == "second", "{said:?}");
    let script = "attach write:zombie register:a4 unregister:a4 report";
    let said = Said::of(a, target, BY_UUID, script).await?;
    said.conflict("write:zombie")?;
    let report = said.value("report")?;
    ensure!(holds(report, b, 0xb3), "the report says {report}");
    let script = "attach release:b3 unregister:b3 report destroy";
    let said = Said::of(b, target, BY_NUMBER, script).await?;
    said.all_ok()?;
    let left = said.value("report")?["registrants"].as_array();
    ensure!(left.is_some_and(Vec::is_empty), "{said:?}");
    Ok(())
}

/// The block device ends and is another one afterwards; registrations belong to the host and stay.
async fn remakes(a: &Machine, target: &Target<'_>) -> Result<()> {
    let script = "attach register:a5 destroy paths report attach report";
    let said = Said::of(a, target, BY_UUID, script).await?;
    ensure!(said.value("paths")?["usable"] == 0, "{said:?}");
    let [first, second] = said.all("attach")[..] else {
        anyhow::bail!("two devices: {said:?}");
    };
    ensure!(
        first["ok"]["sequence"] != second["ok"]["sequence"],
        "the same device again: {said:?}"
    );
    let [without, with] = said.all("report")[..] else {
        anyhow::bail!("two reports: {said:?}");
    };
    ensure!(
        without["unknown"] == false && with["ok"]["registrants"][0]["key"] == 0xa5,
        "{said:?}"
    );
    let script = "unregister:a5 destroy";
    let said = Said::of(a, target, BY_UUID, &format!("attach {script}")).await?;
    said.all_ok()?;
    let left = a
        .shell("ls /sys/class/nvme /sys/class/nvme-subsystem")
        .await?;
    ensure!(!left.contains("nvme0"), "left over: {left}");
    Ok(())
}

/// The target goes and comes back: commands fail meanwhile, and the kernel finds its way again. Its
/// registrations are gone, as nvmet keeps none.
async fn follows_paths(a: &Machine, target: &Target<'_>) -> Result<()> {
    let said = Said::of(a, target, BY_UUID, "attach register:a6").await?;
    said.all_ok()?;
    target.stop().await?;
    let script = "wait-usable:0 paths";
    let said = Said::of(a, target, BY_UUID, script).await?;
    said.all_ok()?;
    let said = Said::of(a, target, BY_UUID, "paths").await?;
    ensure!(said.value("paths")?["usable"] == 0, "{said:?}");
    target.start().await?;
    let said = Said::of(a, target, BY_UUID, "wait-usable:1 attach report destroy").await?;
    said.all_ok()?;
    let registered = said.value("report")?["registrants"].as_array();
    ensure!(registered.is_some_and(Vec::is_empty), "{said:?}");
    Ok(())
}

/// One kernel is one host: another identity is refused, and the first one's device is not touched.
async fn refuses_a_second_host(a: &Machine, b: &Machine, target: &Target<'_>) -> Result<()> {
    Said::of(a, target, BY_UUID, "attach").await?.all_ok()?;
    let said = Said::as_host(a, b, target, BY_UUID, "attach destroy").await?;
    for step in ["attach", "destroy"] {
        let error = said.error(step)?;
        ensure!(error.contains("another host"), "{step}: {error}");
    }
    Said::of(a, target, BY_UUID, "attach report destroy")
        .await?
        .all_ok()
}

/// Whether the report shows that this node alone holds, with this key.
fn holds(report: &Value, node: &Machine, key: u64) -> bool {
    let holder = |entry: &&Value| entry["holder"] == true;
    let registrants = report["registrants"].as_array();
    let holders: Vec<_> = registrants.into_iter().flatten().filter(holder).collect();
    report["reservation"] == "WriteExclusive"
        && matches!(holders.as_slice(), [one]
            if one["key"] == key && one["host"] == node.host_id().to_string())
}

/// What the backend said, a line a step.
#[derive(Debug)]
struct Said(Vec<Value>);

impl Said {
    /// Runs the steps on a node as the host that it is.
    async fn of(
        node: &Machine,
        target: &Target<'_>,
        which: [&str; 2],
        script: &str,
    ) -> Result<Self> {
        Self::as_host(node, node, target, which, script).await
    }

    async fn as_host(
        node: &Machine,
        host: &Machine,
        target: &Target<'_>,
        which: [&str; 2],
        script: &str,
    ) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let program = program.display().to_string();
        let address = format!("{}:{PORT}", target.address());
        let (nqn, id) = (host.host_nqn(), host.host_id().to_string());
        let mut argv = vec![
            program.as_str(),
            "backend",
            "--address",
            &address,
            "--subsystem",
            SUBSYSTEM,
            "--host-nqn",
            &nqn,
            "--host-id",
            &id,
        ];
        argv.extend(which);
        argv.extend(script.split_whitespace());
        let output = node.ok(&argv).await?;
        let lines = output.lines().map(serde_json::from_str);
        let lines = lines.collect::<Result<_, _>>();
        Ok(Self(lines.with_context(|| format!("read {output}"))?))
    }

    fn all(&self, step: &str) -> Vec<&Value> {
        self.0.iter().filter(|line| line["step"] == step).collect()
    }

    fn line(&self, step: &str) -> Result<&Value> {
        let line = self.0.iter().find(|line| line["step"] == step);
        line.with_context(|| format!("no step {step} in {self:?}"))
    }

    fn value(&self, step: &str) -> Result<&Value> {
        let line = self.line(step)?;
        line.get("ok")
            .with_context(|| format!("{step} failed: {line}"))
    }

    fn error(&self, step: &str) -> Result<&str> {
        let line = self.line(step)?;
        let error = line["error"].as_str();
        error.with_context(|| format!("{step} did not fail: {line}"))
    }

    fn conflict(&self, step: &str) -> Result<()> {
        let line = self.line(step)?;
        ensure!(
            line["conflict"] == true && line["unknown"] == false,
            "{step} is no conflict: {line}"
        );
        Ok(())
    }

    fn all_ok(&self) -> Result<()> {
        for line in &self.0 {
            ensure!(line.get("error").is_none(), "failed: {line}");
        }
        Ok(())
    }
}
