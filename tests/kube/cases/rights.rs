//! What members and agents may do in the API: each right is used, and none is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use apiserver::RequestLog;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule, Role};
use kube::Api;

use super::{isolation, moves};
use crate::places;
use crate::report::Outcome;
use crate::world::{CLUSTER, World};

const SETTLED: Duration = Duration::from_secs(90);

/// A right: group, resource, verb.
type Right = (String, String, String);

/// A cluster's first start, a handover and a refusal take every right that members and agents have.
pub async fn rights(world: &mut World) -> Result<Outcome> {
    if world.api.stand_in().is_none() {
        return Ok(Outcome::skipped(
            "a real API server keeps no log of requests here",
        ));
    }
    moves::delete_active(world).await?;
    let (active, _) = world.settled(SETTLED).await?;
    isolation::another_s_name(world, &active).await?;
    let client = world.api.client.clone();
    let roles: Api<Role> = Api::namespaced(client.clone(), &world.api.namespace);
    let member = roles.get(CLUSTER).await?.rules.unwrap_or_default();
    let roles: Api<ClusterRole> = Api::all(client);
    let agent = roles.get("baton-agent").await?.rules.unwrap_or_default();
    let server = world.api.stand_in().context("no stand-in")?;
    let requests = server.requests();
    let accounts = requests
        .iter()
        .filter(|request| request.user.starts_with("system:serviceaccount:"));
    let refused: Vec<_> = accounts.filter(|request| request.code == 403).collect();
    ensure!(refused.is_empty(), "a right is missing: {refused:#?}");
    let mut notes = Vec::new();
    for (namespace, account, rules) in [
        (world.api.namespace.as_str(), CLUSTER, member),
        (places::SYSTEM, "baton-agent", agent),
    ] {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let own = requests.iter().filter(|request| request.user == user);
        let own: Vec<&RequestLog> = own.collect();
        ensure!(!own.is_empty(), "{user} asked for nothing");
        let used: BTreeSet<Right> = own.iter().filter_map(|request| right(request)).collect();
        let granted: BTreeSet<Right> = rules.iter().flat_map(rights_in).collect();
        let unused: Vec<_> = granted.difference(&used).collect();
        ensure!(unused.is_empty(), "{user} has and does not use {unused:?}");
        notes.push(format!("{account}: {} rights, all used", granted.len()));
    }
    Ok(Outcome {
        notes,
        ..Outcome::default()
    })
}

fn right(request: &RequestLog) -> Option<Right> {
    let resource = match request.subresource.as_str() {
        "" => request.resource.clone(),
        sub => format!("{}/{sub}", request.resource),
    };
    let right = (request.group.clone(), resource, request.verb.clone());
    (!request.resource.is_empty()).then_some(right)
}

fn rights_in(rule: &PolicyRule) -> Vec<Right> {
    let mut all = Vec::new();
    for group in rule.api_groups.iter().flatten() {
        for resource in rule.resources.iter().flatten() {
            for verb in &rule.verbs {
                all.push((group.clone(), resource.clone(), verb.clone()));
            }
        }
    }
    all
}
