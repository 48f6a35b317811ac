//! The directory that holds the lease: NFSv4 from `storage` over the peer network, so that it has
//! real locks between the nodes, and stays where it is when a node loses its volume.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::machine::Machine;
use crate::machines::Machines;
use crate::network::Network;

/// Where the nodes see it.
pub const DIRECTORY: &str = "/srv/lease";

/// The server's lease and grace time are the shortest that it allows, 10 s: so long does the lock
/// of a dead node live, and so long does the first lock after the start wait.
const FIRST_LOCK_WITHIN: Duration = Duration::from_secs(40);

/// No delegations: a recall from a dead node would delay the other by the lease time. The server
/// needs `rpc.mountd` for its table of exports, and nothing else of the userland.
const SERVE: &str = "
! mountpoint -q $LEASE || exit 0
mkdir -p $LEASE
echo 0 >/proc/sys/fs/leases-enable
modprobe nfsd
mountpoint -q /proc/fs/nfsd || mount -t nfsd nfsd /proc/fs/nfsd
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
mount -t tmpfs -o size=16m,mode=777 lease $LEASE
rpc.mountd -N 3
exportfs -o rw,sync,no_root_squash,no_subtree_check,fsid=0 \"*:$LEASE\"
rpc.nfsd -N 3 -U -H \"$ADDRESS\" 2
";

/// Soft: with the network gone an operation fails after a while instead of hanging for ever. No
/// caches: what one node writes the other reads.
const MOUNT: &str = "
! mountpoint -q $LEASE || exit 0
mkdir -p $LEASE
modprobe nfsv4
mount -t nfs4 -o vers=4.2,soft,timeo=10,retrans=2,noac,lookupcache=none \"$ADDRESS:/\" $LEASE
";

/// Serves the directory and mounts it on both nodes, where it is not yet. Ready for locks when done.
pub async fn share(machines: &Machines) -> Result<()> {
    let Machines {
        storage,
        node_a,
        node_b,
        common: _,
    } = machines;
    let address = storage.address(Network::Peer);
    let settings = format!("ADDRESS={address} LEASE={DIRECTORY}\n");
    let serve = storage.shell(&(settings.clone() + SERVE)).await;
    serve.context("serve the lease directory")?;
    let mount = async |node: &Machine| {
        let mounted = node.shell(&(settings.clone() + MOUNT)).await;
        mounted.context("mount the lease directory")
    };
    tokio::try_join!(mount(node_a), mount(node_b))?;
    let within = node_a.patience(FIRST_LOCK_WITHIN);
    let file = format!("{DIRECTORY}/.ready");
    let lock = ["flock", &file, "true"];
    let locked = node_a.run_within(&lock, "", within).await?;
    ensure!(locked.code == 0, "no lock: {}", locked.stderr);
    Ok(())
}
