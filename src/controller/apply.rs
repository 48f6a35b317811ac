//! Keeps an object as it should be, by server-side apply: what others have set beside it stays, what is
//! ours is taken back. Nothing is sent while the object already is as it should be.

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::request::{RequestError, ask};
use crate::cluster::{BatonCluster, FIELD_MANAGER, names};
use crate::hex::hex;

/// An object as it should be, with the name of its resource.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its resource.
    pub resource: ApiResource,
    /// Its name.
    pub name: String,
    object: Value,
}

impl Wanted {
    /// From the object, which gets a digest of itself: an object that has another digest was applied
    /// from something else, and may have more than it should.
    pub fn new(mut object: Value) -> Self {
        let digest = Sha256::digest(object.to_string());
        let digest = hex(&digest[..8]);
        let text =
            |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&object, "apiVersion"), text(&object, "kind"));
        let name = text(&object["metadata"], "name");
        object["metadata"]["annotations"][names::APPLIED] = json!(digest);
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let kind = GroupVersionKind::gvk(group, version, &kind);
        Self {
            resource: ApiResource::from_gvk(&kind),
            name,
            object,
        }
    }

    /// Kind and name, for people.
    pub fn shown(&self) -> String {
        format!("{} {}", self.resource.kind, self.name)
    }

    fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(client.clone(), namespace, &self.resource)
    }

    /// Whether the object is as it should be.
    pub fn is(&self, live: &DynamicObject) -> bool {
        serde_json::to_value(live).is_ok_and(|live| covers(&live, &self.object))
    }

    /// The object of that name, whoever made it.
    ///
    /// # Errors
    /// The API server did not say.
    pub async fn find(
        &self,
        client: &Client,
        namespace: &str,
    ) -> Result<Option<DynamicObject>, RequestError> {
        let api = self.api(client, namespace);
        ask(|| format!("read {}", self.shown()), api.get_opt(&self.name)).await
    }

    /// Makes it as it should be. Ours is taken back by force: two hands on one field would fight.
    ///
    /// # Errors
    /// The API server did not take it.
    pub async fn apply(&self, client: &Client, namespace: &str) -> Result<(), RequestError> {
        let api = self.api(client, namespace);
        let how = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&self.object);
        let request = api.patch(&self.name, &how, &patch);
        ask(|| format!("apply {}", self.shown()), request).await?;
        Ok(())
    }
}

/// Whether an object was made for this very cluster.
pub fn belongs(object: &DynamicObject, cluster: &BatonCluster) -> bool {
    let uid = cluster.uid();
    let mut owners = object.owner_references().iter();
    uid.is_some() && owners.any(|owner| Some(&owner.uid) == uid.as_ref())
}

/// Whether all of `wanted` is in `live`. The API server adds defaults, and others their fields.
fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(field, value)| {
            live.get(field)
                .map_or(value.is_null(), |live| covers(live, value))
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len()
                && live
                    .iter()
                    .zip(wanted)
                    .all(|(live, wanted)| covers(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_others_fields_are_no_difference() {
        let wanted = json!({"spec": {"ports": [{"port": 1}], "type": "ClusterIP"}});
        let cases = [
            (
                json!({"spec": {"ports": [{"port": 1, "nodePort": 7}], "type": "ClusterIP"}, "x": 1}),
                true,
            ),
            (
                json!({"spec": {"ports": [{"port": 2}], "type": "ClusterIP"}}),
                false,
            ),
            (
                json!({"spec": {"ports": [{"port": 1}, {"port": 2}], "type": "ClusterIP"}}),
                false,
            ),
            (json!({"spec": {"ports": [{"port": 1}]}}), false),
        ];
        for (live, expected) in cases {
            assert_eq!(covers(&live, &wanted), expected, "{live}");
        }
    }
}
