//! What the server does by itself after a write: the garbage of deleted owners, the content of
//! deleted namespaces, the resources of custom definitions. A real cluster does this a little
//! later; here it is done before the answer, so that tests repeat.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::delete::{FOREGROUND, ORPHAN, Wish};
use crate::api::{Api, Call};
use crate::auth::{Identity, MASTERS};
use crate::custom::{self, CLEANUP, DEFINITIONS};
use crate::http::Query;
use crate::kinds::Kind;
use crate::meta;
use crate::store::Key;

impl Api {
    /// Follows a write that was carried out.
    pub(super) fn written(
        &mut self,
        call: &Call,
        old: Option<&Arc<Value>>,
        new: Option<&Arc<Value>>,
    ) {
        if call.kind.is(DEFINITIONS) {
            custom::changed(self, old.map(Arc::as_ref), new.map(Arc::as_ref));
        }
        if let (true, None, Some(new)) = (call.kind.is("namespaces"), old, new) {
            self.furnish(meta::name(new), call.now);
        }
        let loose = new
            .is_none_or(|new| meta::deleting(new) || new["metadata"]["ownerReferences"].is_array());
        if loose && !self.collecting {
            self.collecting = true;
            while self.collect_once(call.now) {}
            self.collecting = false;
        }
    }

    /// Gives a new namespace what every namespace has.
    pub(crate) fn furnish(&mut self, namespace: &str, now: Timestamp) {
        let Some(kind) = self.kinds.find("", "serviceaccounts") else {
            return;
        };
        let mut call = internal(&kind, namespace, now);
        call.body = Bytes::from_static(br#"{"metadata":{"name":"default"}}"#);
        if let Err(error) = self.create(&call) {
            tracing::debug!(%error, namespace, "no default service account");
        }
    }

    /// One round; whether anything changed.
    fn collect_once(&mut self, now: Timestamp) -> bool {
        let all: Vec<(Key, Arc<Value>)> = self
            .store
            .all()
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let uids: BTreeSet<&str> = all
            .iter()
            .map(|(_, object)| meta::text(object, "uid"))
            .collect();
        let before = self.store.version();
        for (key, object) in &all {
            self.collect_dependent(key, object, &uids, now);
        }
        for (key, object) in all.iter().filter(|(_, object)| meta::deleting(object)) {
            self.finish_owner(key, object, &all, now);
            if &*key.resource == "namespaces" {
                self.empty_namespace(key, &all, now);
            }
            if &*key.resource == DEFINITIONS {
                self.empty_definition(key, object, now);
            }
        }
        self.store.version() != before
    }

    /// An object whose owners are gone goes; one that has others left forgets those that went.
    fn collect_dependent(
        &mut self,
        key: &Key,
        object: &Value,
        uids: &BTreeSet<&str>,
        now: Timestamp,
    ) {
        let Some(owners) = object["metadata"]["ownerReferences"].as_array() else {
            return;
        };
        let alive = |owner: &&Value| uids.contains(owner["uid"].as_str().unwrap_or_default());
        let left: Vec<Value> = owners.iter().filter(alive).cloned().collect();
        if left.is_empty() && !owners.is_empty() {
            self.delete_internally(key, now);
        } else if left.len() < owners.len() {
            let mut new = object.clone();
            meta::set(&mut new, "ownerReferences", Value::Array(left));
            self.put_if_same(key, object, new);
        }
    }

    /// Carries out what a deletion with propagation waits for.
    fn finish_owner(
        &mut self,
        key: &Key,
        object: &Value,
        all: &[(Key, Arc<Value>)],
        now: Timestamp,
    ) {
        let uid = meta::text(object, "uid");
        let has = |finalizer: &str| {
            let list = object["metadata"]["finalizers"].as_array();
            list.is_some_and(|list| list.iter().any(|entry| entry == finalizer))
        };
        let owned = |dependent: &Value| {
            let owners = dependent["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        };
        let dependents: Vec<&(Key, Arc<Value>)> = all
            .iter()
            .filter(|(_, dependent)| owned(dependent))
            .collect();
        if has(ORPHAN) {
            for (dependent_key, dependent) in dependents {
                let mut new = Value::clone(dependent);
                if let Some(owners) = new["metadata"]["ownerReferences"].as_array_mut() {
                    owners.retain(|owner| owner["uid"] != uid);
                }
                self.put_if_same(dependent_key, dependent, new);
            }
            self.drop_finalizer(key, ORPHAN);
        } else if has(FOREGROUND) {
            if dependents.is_empty() {
                self.drop_finalizer(key, FOREGROUND);
            }
            for (dependent_key, _) in dependents {
                self.delete_internally(dependent_key, now);
            }
        }
    }

    fn empty_namespace(&mut self, key: &Key, all: &[(Key, Arc<Value>)], now: Timestamp) {
        let mut empty = true;
        for (inner, _) in all.iter().filter(|(inner, _)| inner.namespace == key.name) {
            if self.store.get(inner).is_some() {
                self.delete_internally(inner, now);
                empty &= self.store.get(inner).is_none();
            }
        }
        let held = self
            .store
            .get(key)
            .is_some_and(|namespace| meta::finalizers(namespace));
        if empty && !held {
            self.store.remove(key);
        }
    }

    fn empty_definition(&mut self, key: &Key, definition: &Value, now: Timestamp) {
        let resource: Arc<str> = meta::name(definition).into();
        let objects: Vec<Key> = self
            .store
            .list(&resource, None)
            .map(|(key, _)| key.clone())
            .collect();
        for object in &objects {
            self.delete_internally(object, now);
        }
        if self.store.list(&resource, None).next().is_none() {
            self.drop_finalizer(key, CLEANUP);
        }
    }

    fn delete_internally(&mut self, key: &Key, now: Timestamp) {
        let kind = self
            .kinds
            .iter()
            .find(|kind| kind.id == key.resource && kind.facade.is_none());
        let Some(kind) = kind.cloned() else {
            self.store.remove(key);
            return;
        };
        let call = internal(&kind, &key.namespace, now);
        // Gone already: nothing to do.
        let _ = self.delete_one(&call, &key.name, &Wish::plain());
    }

    fn drop_finalizer(&mut self, key: &Key, finalizer: &str) {
        let Some(object) = self.store.get(key).cloned() else {
            return;
        };
        let mut new = Value::clone(&object);
        if let Some(list) = new["metadata"]["finalizers"].as_array_mut() {
            list.retain(|entry| entry != finalizer);
        }
        let grace = new["metadata"]["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(0);
        let last = !meta::finalizers(&new) && grace == 0 && &*key.resource != "namespaces";
        if meta::substance(&new) == meta::substance(&object) && !last {
            return;
        }
        if last {
            let gone = self.store.remove(key);
            if &*key.resource == DEFINITIONS {
                custom::changed(self, gone.as_deref(), None);
            }
        } else {
            self.store.put(key.clone(), new);
        }
    }

    /// Writes unless the object has changed in this round already; the next round sees it then.
    fn put_if_same(&mut self, key: &Key, seen: &Value, new: Value) {
        if self.store.get(key).is_some_and(|now| **now == *seen) {
            self.store.put(key.clone(), new);
        }
    }
}

/// A call of the server itself.
pub(crate) fn internal(kind: &Arc<Kind>, namespace: &str, now: Timestamp) -> Call {
    Call {
        identity: Identity::user("system:apiserver", &[MASTERS]),
        verb: "",
        kind: Arc::clone(kind),
        version: kind.stored().name.clone(),
        namespace: namespace.to_owned(),
        name: String::new(),
        subresource: String::new(),
        query: Query::default(),
        content_type: String::new(),
        accept: String::new(),
        user_agent: "apiserver".to_owned(),
        body: Bytes::new(),
        now,
        conflict: false,
        expired_by_http: false,
    }
}

/// A namespace made by the server.
pub(crate) fn make_namespace(api: &mut Api, name: &str, now: Timestamp) {
    let Some(kind) = api.kinds.find("", "namespaces") else {
        return;
    };
    let mut call = internal(&kind, "", now);
    call.body = json!({ "metadata": { "name": name } }).to_string().into();
    if let Err(error) = api.create(&call) {
        tracing::debug!(%error, name, "namespace not made");
    }
}
