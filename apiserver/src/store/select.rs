//! Label and field selectors.

use serde_json::Value;

use crate::kinds::Kind;
use crate::meta;
use crate::refusal::Refusal;

/// One requirement on a label.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Need {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Missing(String),
}

impl Need {
    fn holds(&self, object: &Value) -> bool {
        let value = |key: &str| meta::labels(object).and_then(|labels| labels.get(key)?.as_str());
        match self {
            Self::In(key, wanted) => value(key).is_some_and(|has| wanted.iter().any(|w| w == has)),
            Self::NotIn(key, refused) => {
                value(key).is_none_or(|has| refused.iter().all(|refused| refused != has))
            }
            Self::Exists(key) => value(key).is_some(),
            Self::Missing(key) => value(key).is_none(),
        }
    }
}

/// What a list or a watch asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<Need>,
    /// (JSON pointer, value, whether it must be equal)
    fields: Vec<(String, String, bool)>,
}

impl Selector {
    /// Reads both selectors of a query.
    ///
    /// # Errors
    /// 400 for text that does not parse, and for a field that the kind cannot be selected by.
    pub(crate) fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, Refusal> {
        Ok(Self {
            labels: parse_labels(labels)?,
            fields: parse_fields(kind, fields)?,
        })
    }

    /// The selector of a `LabelSelector` object (budgets, services do without it).
    pub(crate) fn of_label_selector(selector: &Value) -> Self {
        let mut labels = Vec::new();
        for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            labels.push(Need::In(key.clone(), vec![value]));
        }
        for need in selector["matchExpressions"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let key = need["key"].as_str().unwrap_or_default().to_owned();
            let values = need["values"].as_array().into_iter().flatten();
            let values = values
                .filter_map(|value| value.as_str().map(str::to_owned))
                .collect();
            match need["operator"].as_str().unwrap_or_default() {
                "In" => labels.push(Need::In(key, values)),
                "NotIn" => labels.push(Need::NotIn(key, values)),
                "Exists" => labels.push(Need::Exists(key)),
                _ => labels.push(Need::Missing(key)),
            }
        }
        Self {
            labels,
            fields: Vec::new(),
        }
    }

    /// Whether an object (in its stored form) is asked for.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|need| need.holds(object))
            && self
                .fields
                .iter()
                .all(|(pointer, wanted, equal)| (field_text(object, pointer) == *wanted) == *equal)
    }
}

fn field_text(object: &Value, pointer: &str) -> String {
    match object.pointer(pointer) {
        None | Some(Value::Null) if pointer == "/spec/unschedulable" => "false".to_owned(),
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn parse_labels(text: &str) -> Result<Vec<Need>, Refusal> {
    split_outside_brackets(text)
        .into_iter()
        .map(|part| parse_need(part.trim()))
        .collect()
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut from) = (0, 0);
    for (at, symbol) in text.char_indices() {
        match symbol {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn parse_need(text: &str) -> Result<Need, Refusal> {
    let unreadable = || Refusal::BadRequest(format!("unable to parse requirement: {text:?}"));
    let key = |key: &str| {
        let key = key.trim();
        let legal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if !key.is_empty() && key.chars().all(legal) {
            Ok(key.to_owned())
        } else {
            Err(unreadable())
        }
    };
    if let Some(name) = text.strip_prefix('!') {
        return Ok(Need::Missing(key(name)?));
    }
    if let Some((name, value)) = text.split_once("!=") {
        return Ok(Need::NotIn(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok(Need::In(key(name)?, vec![value.trim().to_owned()]));
    }
    if let Some(rest) = text.strip_suffix(')') {
        let (head, values) = rest.split_once('(').ok_or_else(unreadable)?;
        let values = values
            .split(',')
            .map(|value| value.trim().to_owned())
            .collect();
        let (name, operator) = head
            .trim()
            .rsplit_once(char::is_whitespace)
            .ok_or_else(unreadable)?;
        return match operator {
            "in" => Ok(Need::In(key(name)?, values)),
            "notin" => Ok(Need::NotIn(key(name)?, values)),
            _ => Err(unreadable()),
        };
    }
    Ok(Need::Exists(key(text)?))
}

fn parse_fields(kind: &Kind, text: &str) -> Result<Vec<(String, String, bool)>, Refusal> {
    let mut fields = Vec::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (name, value, equal) = if let Some((name, value)) = part.split_once("!=") {
            (name, value, false)
        } else if let Some((name, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (name, value, true)
        } else {
            let why = format!("invalid selector: '{part}'; can't understand '{part}'");
            return Err(Refusal::BadRequest(why));
        };
        let stored = stored_field(kind, name.trim()).ok_or_else(|| {
            Refusal::BadRequest(format!("field label not supported: {}", name.trim()))
        })?;
        let pointer = format!("/{}", stored.replace('.', "/"));
        fields.push((pointer, value.trim().to_owned(), equal));
    }
    Ok(fields)
}

/// Where a selectable field lies in the stored object; `None` if the kind cannot be selected by
/// it.
fn stored_field(kind: &Kind, name: &str) -> Option<String> {
    if name == "metadata.name" || (name == "metadata.namespace" && kind.namespaced) {
        return Some(name.to_owned());
    }
    let known: &[&str] = match &*kind.id {
        "pods" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "events" if !kind.group.is_empty() => {
            let rest = name.strip_prefix("regarding.")?;
            return Some(format!("involvedObject.{rest}"));
        }
        "events" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "type",
        ],
        "nodes" => &["spec.unschedulable"],
        "secrets" => &["type"],
        "namespaces" => &["status.phase"],
        "replicasets.apps" => &["status.replicas"],
        "jobs.batch" => &["status.successful"],
        _ => &[],
    };
    known.contains(&name).then(|| name.to_owned())
}
