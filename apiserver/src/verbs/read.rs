//! get, list and watch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use serde_json::{Value, json};

use super::present;
use crate::api::{Answer, Api, Call, Reply};
use crate::refusal::{Refusal, not_found};
use crate::store::select::Selector;
use crate::store::{Key, TooOld};
use crate::watch::{Plan, Start, too_old};

/// A piece of a list.
struct Page {
    items: Vec<Arc<Value>>,
    version: u64,
    next: String,
    remaining: usize,
}

impl Api {
    pub(super) fn get(&self, call: &Call) -> Result<Reply, Refusal> {
        self.check_not_newer(call)?;
        let found = self.store.get(&call.key(&call.name));
        let found = found.ok_or_else(|| not_found(&call.kind, &call.name))?;
        let object = present::object(&call.kind, &call.version, found);
        if present::wants_metadata_only(&call.accept) {
            return Ok(Reply::new(200, present::metadata_only(object)));
        }
        Ok(Reply::new(200, object))
    }

    pub(super) fn list(&self, call: &Call) -> Result<Reply, Refusal> {
        self.check_not_newer(call)?;
        let selector = selector(call)?;
        let page = self.page(call, &selector)?;
        let mut metadata = json!({ "resourceVersion": page.version.to_string() });
        if !page.next.is_empty() {
            metadata["continue"] = json!(page.next);
            if selector == Selector::default() {
                metadata["remainingItemCount"] = json!(page.remaining);
            }
        }
        let objects = page.items.iter();
        let objects = objects.map(|object| present::object(&call.kind, &call.version, object));
        if present::wants_metadata_only(&call.accept) {
            let items = objects.map(present::metadata_only).collect();
            return Ok(Reply::new(200, present::metadata_list(items, metadata)));
        }
        let items = objects.collect();
        Ok(Reply::new(
            200,
            present::list(&call.kind, &call.version, items, metadata),
        ))
    }

    pub(super) fn watch(&self, call: &Call) -> Result<Answer, Refusal> {
        let start = self.watch_start(call)?;
        if let (Start::After(version), true) = (start, call.expired_by_http) {
            self.store
                .changes(&call.kind.id, None, version)
                .map_err(too_old)?;
        }
        Ok(Answer::Watch(Plan {
            kind: Arc::clone(&call.kind),
            version: call.version.clone(),
            namespace: namespace(call).map(str::to_owned),
            selector: selector(call)?,
            start,
            bookmarks: call.query.flag("allowWatchBookmarks"),
            metadata_only: present::wants_metadata_only(&call.accept),
            timeout: call
                .query
                .number("timeoutSeconds")?
                .map(Duration::from_secs),
        }))
    }

    fn watch_start(&self, call: &Call) -> Result<Start, Refusal> {
        let match_rule = call.query.text("resourceVersionMatch");
        let initial = call.query.text("sendInitialEvents");
        if initial.is_empty() && !match_rule.is_empty() {
            return Err(options_invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch \
                 unless sendInitialEvents is provided",
            ));
        }
        if initial == "true" {
            if match_rule != "NotOlderThan" {
                return Err(options_invalid(
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
                     resourceVersionMatch to NotOlderThan",
                ));
            }
            self.check_not_newer(call)?;
            return Ok(Start::Everything {
                marked: call.query.flag("allowWatchBookmarks"),
            });
        }
        match call.query.number("resourceVersion")? {
            None | Some(0) if initial == "false" => Ok(Start::After(self.store.version())),
            None | Some(0) => Ok(Start::Everything { marked: false }),
            Some(version) => Ok(Start::After(version)),
        }
    }

    /// A version that is not there yet cannot be read; the real server waits three seconds for
    /// it and then says the same.
    fn check_not_newer(&self, call: &Call) -> Result<(), Refusal> {
        let current = self.store.version();
        match call.query.number("resourceVersion")? {
            Some(wanted) if wanted > current => Err(Refusal::TooNew { wanted, current }),
            _ => Ok(()),
        }
    }

    fn page(&self, call: &Call, selector: &Selector) -> Result<Page, Refusal> {
        let namespace = namespace(call);
        let limit = call.query.number("limit")?.unwrap_or(0) as usize;
        let (objects, version, after) = match call.query.text("continue") {
            "" => {
                let (objects, version) = self.objects_for_list(call, namespace)?;
                (objects, version, None)
            }
            token => {
                let (version, after) = read_token(token, &call.kind.id)?;
                let objects = self.store.list_at(&call.kind.id, namespace, version);
                (
                    objects.map_err(|_| continue_expired())?,
                    version,
                    Some(after),
                )
            }
        };
        let mut found: Vec<(Key, Arc<Value>)> = objects
            .into_iter()
            .filter(|(key, _)| after.as_ref().is_none_or(|after| key > after))
            .filter(|(_, object)| selector.matches(object))
            .collect();
        let mut page = Page {
            items: Vec::new(),
            version,
            next: String::new(),
            remaining: 0,
        };
        if limit > 0 && found.len() > limit {
            page.remaining = found.len() - limit;
            found.truncate(limit);
            page.next = found
                .last()
                .map(|(key, _)| token(version, key))
                .unwrap_or_default();
        }
        page.items = found.into_iter().map(|(_, object)| object).collect();
        Ok(page)
    }

    fn objects_for_list(
        &self,
        call: &Call,
        namespace: Option<&str>,
    ) -> Result<(BTreeMap<Key, Arc<Value>>, u64), Refusal> {
        let exact = call.query.text("resourceVersionMatch") == "Exact";
        let wanted = call.query.number("resourceVersion")?;
        let version = match wanted {
            Some(version) if exact && version > 0 => version,
            None | Some(0) if exact => {
                return Err(options_invalid(
                    "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden \
                     for resourceVersion \"0\"",
                ));
            }
            _ => self.store.version(),
        };
        let expired = |old: TooOld| {
            Refusal::Expired(format!("The resourceVersion {} is too old", old.wanted))
        };
        let objects = if exact {
            self.store
                .list_at(&call.kind.id, namespace, version)
                .map_err(expired)?
        } else {
            let now = self.store.list(&call.kind.id, namespace);
            now.map(|(key, object)| (key.clone(), Arc::clone(object)))
                .collect()
        };
        Ok((objects, version))
    }
}

pub(super) fn selector(call: &Call) -> Result<Selector, Refusal> {
    let (labels, fields) = (
        call.query.text("labelSelector"),
        call.query.text("fieldSelector"),
    );
    Selector::parse(&call.kind, labels, fields)
}

pub(super) fn namespace(call: &Call) -> Option<&str> {
    Some(call.namespace.as_str()).filter(|namespace| !namespace.is_empty())
}

fn options_invalid(why: &str) -> Refusal {
    Refusal::BadRequest(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"))
}

fn continue_expired() -> Refusal {
    Refusal::Expired(
        "The provided continue parameter is too old to display a consistent list result. You \
         must start a new list without the continue parameter."
            .to_owned(),
    )
}

fn token(version: u64, last: &Key) -> String {
    let text = json!([version, last.namespace, last.name]).to_string();
    BASE64_STANDARD_NO_PAD.encode(text)
}

fn read_token(token: &str, resource: &Arc<str>) -> Result<(u64, Key), Refusal> {
    let bad = || Refusal::BadRequest("continue key is not valid".to_owned());
    let bytes = BASE64_STANDARD_NO_PAD.decode(token).map_err(|_| bad())?;
    let (version, namespace, name): (u64, String, String) =
        serde_json::from_slice(&bytes).map_err(|_| bad())?;
    Ok((
        version,
        Key {
            resource: Arc::clone(resource),
            namespace,
            name,
        },
    ))
}
