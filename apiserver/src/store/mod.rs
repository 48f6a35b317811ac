//! The objects, the one counter that versions them all, and the bounded history that watches
//! read. Knows nothing of kinds, users or requests.

mod history;
pub(crate) mod select;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::watch;

pub(crate) use history::{Change, ChangeKind, TooOld};

use crate::meta;
use history::History;

/// Where an object lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `Kind::id`
    pub resource: Arc<str>,
    /// Empty for resources without namespaces.
    pub namespace: String,
    pub name: String,
}

/// All objects.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    history: History,
    /// Tells watches that there is something new.
    newest: watch::Sender<u64>,
}

impl Store {
    /// An empty store that remembers `history` changes.
    pub(crate) fn new(history: usize) -> Self {
        Self {
            version: 1,
            objects: BTreeMap::new(),
            history: History::new(history),
            newest: watch::Sender::new(1),
        }
    }

    /// The newest resourceVersion.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Wakes at every change.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Writes an object under the next resourceVersion and returns it as it lies there now.
    pub(crate) fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        meta::set(
            &mut object,
            "resourceVersion",
            json!(self.version.to_string()),
        );
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), Arc::clone(&object));
        self.note(key, before, Some(Arc::clone(&object)));
        object
    }

    /// Removes an object; the returned last state carries the resourceVersion of the removal, as
    /// watches tell it.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        self.version += 1;
        self.note(key.clone(), Some(Arc::clone(&before)), None);
        Some(at_version(&before, self.version))
    }

    fn note(&mut self, key: Key, before: Option<Arc<Value>>, after: Option<Arc<Value>>) {
        self.history.push(Change {
            version: self.version,
            key,
            before,
            after,
        });
        self.newest.send_replace(self.version);
    }

    /// Objects of a resource, of one namespace if given, in the order of their keys.
    pub(crate) fn list(
        &self,
        resource: &Arc<str>,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        let from = Key {
            resource: Arc::clone(resource),
            namespace: namespace.unwrap_or_default().to_owned(),
            name: String::new(),
        };
        let resource = Arc::clone(resource);
        let namespace = namespace.map(str::to_owned);
        self.objects.range(from..).take_while(move |(key, _)| {
            key.resource == resource && namespace.as_ref().is_none_or(|ns| *ns == key.namespace)
        })
    }

    /// Every object.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.objects.iter()
    }

    /// A resource's objects as they were at an earlier version.
    pub(crate) fn list_at(
        &self,
        resource: &Arc<str>,
        namespace: Option<&str>,
        version: u64,
    ) -> Result<BTreeMap<Key, Arc<Value>>, TooOld> {
        let mut objects: BTreeMap<Key, Arc<Value>> = self
            .list(resource, namespace)
            .map(|(key, object)| (key.clone(), Arc::clone(object)))
            .collect();
        let wanted =
            |key: &Key| key.resource == *resource && namespace.is_none_or(|ns| ns == key.namespace);
        for change in self
            .history
            .since(version)?
            .rev()
            .filter(|change| wanted(&change.key))
        {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), Arc::clone(before)),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }

    /// A resource's changes after a version, oldest first.
    pub(crate) fn changes(
        &self,
        resource: &Arc<str>,
        namespace: Option<&str>,
        after: u64,
    ) -> Result<Vec<Change>, TooOld> {
        let changes = self.history.since(after)?;
        Ok(changes
            .filter(|change| change.key.resource == *resource)
            .filter(|change| namespace.is_none_or(|ns| ns == change.key.namespace))
            .cloned()
            .collect())
    }

    /// Forgets every change so far, as etcd's compaction does. The version moves on, so that
    /// even the newest resourceVersion that any client has seen is too old.
    pub(crate) fn compact(&mut self) {
        self.version += 1;
        self.history.forget(self.version);
        self.newest.send_replace(self.version);
    }
}

/// The object with another resourceVersion.
pub(crate) fn at_version(object: &Value, version: u64) -> Arc<Value> {
    let mut object = object.clone();
    meta::set(&mut object, "resourceVersion", json!(version.to_string()));
    Arc::new(object)
}
