//! Which lists and maps are owned piece by piece and which as a whole. Custom resources say so in
//! their schema (`x-kubernetes-list-type`, `-list-map-keys`, `-map-type`); for the built-in ones
//! it is known by the names of the fields, as far as the objects of a PostgreSQL cluster go. What
//! is in neither is, as in Kubernetes, a list that is one whole or a map that is not.

use std::borrow::Cow;

use serde_json::{Value, json};

/// How a list is owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum List {
    /// As a whole.
    Atomic,
    /// Value by value.
    Set,
    /// Item by item; the items are told apart by these fields.
    Map(Vec<String>),
}

/// What is known of the place where one is in an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape<'a> {
    /// A structural schema.
    Schema(&'a Value),
    /// A field of a built-in type, with the field above it.
    BuiltIn { above: &'a str, field: &'a str },
}

static NOTHING: Value = Value::Null;

impl<'a> Shape<'a> {
    /// The whole object: of a custom resource if there is a schema, else of a built-in one.
    pub(crate) fn root(schema: Option<&'a Value>) -> Self {
        schema.map_or(
            Self::BuiltIn {
                above: "",
                field: "",
            },
            Self::Schema,
        )
    }

    /// A field of an object here.
    pub(crate) fn field<'b>(&self, name: &'b str) -> Shape<'b>
    where
        'a: 'b,
    {
        match *self {
            Self::Schema(schema) => {
                let found = &schema["properties"][name];
                if found.is_null() && name == "metadata" {
                    return Shape::BuiltIn {
                        above: "",
                        field: "metadata",
                    };
                }
                let more = &schema["additionalProperties"];
                Shape::Schema(match (found.is_object(), more.is_object()) {
                    // ObjectMeta is a built-in type wherever the schema only says "object".
                    (true, _) if name == "metadata" && found["properties"].is_null() => {
                        return Shape::BuiltIn {
                            above: "",
                            field: "metadata",
                        };
                    }
                    (true, _) => found,
                    (false, true) => more,
                    (false, false) => &NOTHING,
                })
            }
            Self::BuiltIn { field, .. } => Shape::BuiltIn {
                above: field,
                field: name,
            },
        }
    }

    /// An item of a list here.
    pub(crate) fn item(&self) -> Shape<'a> {
        match *self {
            Self::Schema(schema) => Shape::Schema(&schema["items"]),
            // What is in an item is told by the name of the list.
            Self::BuiltIn { .. } => *self,
        }
    }

    /// How a list here is owned.
    pub(crate) fn list(&self) -> List {
        match *self {
            Self::Schema(schema) => match schema["x-kubernetes-list-type"].as_str() {
                Some("map") => {
                    let keys = schema["x-kubernetes-list-map-keys"].as_array();
                    let keys = keys.into_iter().flatten().filter_map(Value::as_str);
                    List::Map(keys.map(str::to_owned).collect())
                }
                Some("set") => List::Set,
                _ => List::Atomic,
            },
            Self::BuiltIn { above, field } => built_in_list(above, field),
        }
    }

    /// Whether an object here is owned as a whole.
    pub(crate) fn atomic_map(&self) -> bool {
        match *self {
            Self::Schema(schema) => schema["x-kubernetes-map-type"] == "atomic",
            Self::BuiltIn { above, field } => {
                matches!(
                    field,
                    "selector"
                        | "labelSelector"
                        | "namespaceSelector"
                        | "podSelector"
                        | "nodeSelector"
                        | "secretKeyRef"
                        | "configMapKeyRef"
                        | "fieldRef"
                        | "resourceFieldRef"
                        | "roleRef"
                        | "claimRef"
                        | "dataSource"
                        | "involvedObject"
                        | "regarding"
                        | "targetRef"
                ) || (above == "nodeAffinity" && field.starts_with("required"))
            }
        }
    }

    /// The key of a list's item, filled up from defaults; `None` if a field is missing.
    pub(crate) fn key(&self, keys: &[String], item: &Value) -> Option<String> {
        let mut key = serde_json::Map::new();
        for name in keys {
            let value = match &item[name] {
                Value::Null => self.key_default(name)?,
                value => Cow::Borrowed(value),
            };
            key.insert(name.clone(), value.into_owned());
        }
        Some(Value::Object(key).to_string())
    }

    fn key_default(&self, name: &str) -> Option<Cow<'_, Value>> {
        match *self {
            Self::Schema(schema) => {
                let default = &schema["items"]["properties"][name]["default"];
                (!default.is_null()).then_some(Cow::Borrowed(default))
            }
            Self::BuiltIn { field: "ports", .. } if name == "protocol" => {
                Some(Cow::Owned(json!("TCP")))
            }
            Self::BuiltIn { .. } => None,
        }
    }
}

fn built_in_list(above: &str, field: &str) -> List {
    let map = |keys: &[&str]| List::Map(keys.iter().map(|key| (*key).to_owned()).collect());
    match (above, field) {
        ("metadata", "finalizers") | ("spec", "podCIDRs") => List::Set,
        ("metadata", "ownerReferences") => map(&["uid"]),
        ("containers" | "initContainers" | "ephemeralContainers", "ports") => {
            map(&["containerPort", "protocol"])
        }
        ("spec", "ports") => map(&["port", "protocol"]),
        ("status", "conditions" | "addresses") => map(&["type"]),
        ("", "secrets" | "imagePullSecrets") => map(&["name"]),
        (
            _,
            "containers"
            | "initContainers"
            | "ephemeralContainers"
            | "volumes"
            | "env"
            | "imagePullSecrets"
            | "resourceClaims"
            | "schedulingGates"
            | "claims",
        ) => map(&["name"]),
        (_, "volumeMounts") => map(&["mountPath"]),
        (_, "volumeDevices") => map(&["devicePath"]),
        (_, "hostAliases" | "podIPs" | "hostIPs") => map(&["ip"]),
        (_, "topologySpreadConstraints") => map(&["topologyKey", "whenUnsatisfiable"]),
        _ => List::Atomic,
    }
}
