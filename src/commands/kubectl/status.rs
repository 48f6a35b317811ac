//! `kubectl baton status`.

use std::process::ExitCode;

use serde_json::json;

use super::super::reach::{Output, print_json, print_table};
use super::site::{Seen, Site};
use super::sites::Sites;
use crate::controller::Record;

/// What is shown of members.
const HEAD: [&str; 7] = ["Member", "No", "Pod", "Node", "Role", "Serving", "Ready"];

/// Shows the cluster; fails where nobody serves.
pub async fn show(site: &Site, output: Output) -> anyhow::Result<ExitCode> {
    let seen = site.look().await?;
    let sites = Sites::look(site, &seen).await;
    match output {
        Output::Text => print(site, &seen, sites.as_ref()),
        Output::Json => print_json(&document(site, &seen, sites.as_ref()))?,
    }
    Ok(if seen.view.serves() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn document(site: &Site, seen: &Seen, sites: Option<&Sites>) -> serde_json::Value {
    let members = seen.all.members().map(|(site, member)| {
        let pod = member.pod.as_ref();
        json!({
            "name": member.name,
            "site": site.name,
            "number": member.number,
            "pod": pod.map(|pod| &pod.name),
            "node": pod.and_then(|pod| pod.node.as_ref()),
            "role": pod.and_then(|pod| pod.role.as_ref()),
            "serving": pod.is_some_and(|pod| pod.serving),
            "ready": pod.is_some_and(|pod| pod.ready),
        })
    });
    let mut document = json!({
        "cluster": site.cluster,
        "namespace": site.namespace,
        "active": seen.view.owner().map(|owner| &owner.name),
        "serving": seen.view.serves(),
        "standby": seen.view.standby().map(|standby| &standby.name),
        "epoch": seen.epoch(),
        "paused": seen.paused(),
        "members": members.collect::<Vec<_>>(),
        "status": seen.cluster.status,
    });
    if let Some(sites) = sites {
        document["primary_site"] = json!(seen.view.name);
        document["replication"] = sites.document();
    }
    document
}

fn print(site: &Site, seen: &Seen, sites: Option<&Sites>) {
    let active = seen
        .view
        .owner()
        .map_or("none", |owner| owner.name.as_str());
    let epoch = seen
        .epoch()
        .map_or("-".to_owned(), |epoch| epoch.to_string());
    let paused = match seen.paused() {
        Some(true) => ", PAUSED",
        Some(false) => "",
        None => ", unknown whether paused",
    };
    let Site {
        namespace, cluster, ..
    } = site;
    println!("Cluster {namespace}/{cluster}: active {active}, epoch {epoch}{paused}");
    let members = seen.all.members();
    match sites {
        None => {
            let rows: Vec<_> = members.map(|(_, member)| row(member)).collect();
            print_table(HEAD, &rows);
        }
        Some(sites) => {
            println!("The primary is at site {}", seen.view.name);
            sites.print();
            let rows: Vec<_> = members
                .map(|(site, member)| {
                    let [member, rest @ ..] = row(member);
                    let [no, pod, node, role, serving, ready] = rest;
                    [
                        site.name.clone(),
                        member,
                        no,
                        pod,
                        node,
                        role,
                        serving,
                        ready,
                    ]
                })
                .collect();
            let [member, no, pod, node, role, serving, ready] = HEAD;
            let head = ["Site", member, no, pod, node, role, serving, ready];
            print_table(head, &rows);
        }
    }
    if let Record::Unreadable(why) = &seen.view.record {
        println!("WARNING the Lease cannot be understood: {why}");
    }
    let status = seen.cluster.status.as_ref();
    let conditions = status.map(|status| status.conditions.as_slice());
    for condition in conditions.unwrap_or_default() {
        let mark = if condition.status == "True" { ' ' } else { '!' };
        let (type_, status) = (&condition.type_, &condition.status);
        println!(
            "{mark} {type_}={status} ({}): {}",
            condition.reason, condition.message
        );
    }
    if status.is_none() {
        println!("! no controller has looked at it yet");
    }
}

fn row(member: &crate::controller::MemberView) -> [String; 7] {
    let dash = || "-".to_owned();
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let pod = member.pod.as_ref();
    let text = |text: Option<&String>| text.cloned().unwrap_or_else(dash);
    [
        member.name.clone(),
        member.number.to_string(),
        text(pod.map(|pod| &pod.name)),
        text(pod.and_then(|pod| pod.node.as_ref())),
        text(pod.and_then(|pod| pod.role.as_ref())),
        pod.map_or_else(dash, |pod| yes(pod.serving)),
        pod.map_or_else(dash, |pod| yes(pod.ready)),
    ]
}
