//! What the server fills in where a client is silent: for the built-in kinds, the fields that
//! clients read back. Not everything that the real server fills in is here.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use crate::api::Api;
use crate::kinds::Kind;
use crate::meta;

/// Fills an object of a built-in kind.
pub(super) fn fill(api: &mut Api, kind: &Kind, object: &mut Value) {
    match &*kind.id {
        "pods" => {
            pod_spec(&mut object["spec"]);
            default(object, "/status", "phase", json!("Pending"));
            default(object, "/status", "qosClass", json!("BestEffort"));
        }
        "deployments.apps" | "daemonsets.apps" | "statefulsets.apps" | "replicasets.apps" => {
            workload(kind, object);
        }
        "services" => service(api, object),
        "persistentvolumeclaims" => {
            default(object, "/spec", "volumeMode", json!("Filesystem"));
            default(object, "/status", "phase", json!("Pending"));
        }
        "persistentvolumes" => {
            default(object, "/spec", "volumeMode", json!("Filesystem"));
            default(
                object,
                "/spec",
                "persistentVolumeReclaimPolicy",
                json!("Retain"),
            );
            default(object, "/status", "phase", json!("Pending"));
        }
        "namespaces" => {
            default(object, "/status", "phase", json!("Active"));
            default(object, "/spec", "finalizers", json!(["kubernetes"]));
            let name = json!(meta::name(object));
            default(object, "/metadata", "labels", json!({}));
            default(
                object,
                "/metadata/labels",
                "kubernetes.io/metadata.name",
                name,
            );
        }
        "secrets" => secret(object),
        "endpointslices.discovery.k8s.io" => {
            for port in items(object, "/ports") {
                default(port, "", "name", json!(""));
                default(port, "", "protocol", json!("TCP"));
            }
        }
        "storageclasses.storage.k8s.io" => {
            default(object, "", "reclaimPolicy", json!("Delete"));
            default(object, "", "volumeBindingMode", json!("Immediate"));
        }
        _ => {}
    }
}

/// Sets a field below `pointer` if it is missing; makes the object there if need be.
fn default(object: &mut Value, pointer: &str, field: &str, value: Value) {
    if !pointer.is_empty() && object.pointer(pointer).is_none_or(Value::is_null) {
        let name = pointer.rsplit('/').next().unwrap_or_default();
        let above = &pointer[..pointer.len() - name.len() - 1];
        if let Some(above) = object.pointer_mut(above) {
            above[name] = json!({});
        }
    }
    if let Some(Value::Object(place)) = object.pointer_mut(pointer) {
        let missing = place.get(field).is_none_or(Value::is_null);
        if missing {
            place.insert(field.to_owned(), value);
        }
    }
}

fn items<'v>(object: &'v mut Value, pointer: &str) -> impl Iterator<Item = &'v mut Value> {
    object
        .pointer_mut(pointer)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    for (field, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("securityContext", json!({})),
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("serviceAccountName", json!("default")),
    ] {
        default(spec, "", field, value);
    }
    for list in ["/containers", "/initContainers"] {
        for container in items(spec, list) {
            let latest = container["image"].as_str().is_none_or(|image| {
                let tag = image.rsplit('/').next().unwrap_or_default();
                !image.contains('@') && (!tag.contains(':') || tag.ends_with(":latest"))
            });
            let pull = if latest { "Always" } else { "IfNotPresent" };
            default(container, "", "imagePullPolicy", json!(pull));
            default(
                container,
                "",
                "terminationMessagePath",
                json!("/dev/termination-log"),
            );
            default(container, "", "terminationMessagePolicy", json!("File"));
            default(container, "", "resources", json!({}));
            for port in items(container, "/ports") {
                default(port, "", "protocol", json!("TCP"));
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                let pointer = format!("/{probe}");
                if container.get(probe).is_some_and(Value::is_object) {
                    for (field, value) in [
                        ("timeoutSeconds", 1),
                        ("periodSeconds", 10),
                        ("successThreshold", 1),
                    ] {
                        default(container, &pointer, field, json!(value));
                    }
                    default(container, &pointer, "failureThreshold", json!(3));
                    if container[probe]["httpGet"].is_object() {
                        let get = format!("{pointer}/httpGet");
                        default(container, &get, "scheme", json!("HTTP"));
                    }
                }
            }
        }
    }
    for volume in items(spec, "/volumes") {
        for source in ["configMap", "secret", "projected", "downwardAPI"] {
            if volume.get(source).is_some_and(Value::is_object) {
                default(volume, &format!("/{source}"), "defaultMode", json!(0o644));
            }
        }
        if volume.get("hostPath").is_some_and(Value::is_object) {
            default(volume, "/hostPath", "type", json!(""));
        }
    }
}

fn workload(kind: &Kind, object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod_spec(spec);
        // Left to the pods.
        for field in [
            "preemptionPolicy",
            "enableServiceLinks",
            "serviceAccountName",
        ] {
            let filled = spec[field] == "PreemptLowerPriority"
                || spec[field] == true
                || spec[field] == "default";
            if filled {
                meta::remove(spec, field);
            }
        }
    }
    default(object, "/spec", "revisionHistoryLimit", json!(10));
    if !kind.is("daemonsets.apps") {
        default(object, "/spec", "replicas", json!(1));
    }
    if kind.is("deployments.apps") {
        default(object, "/spec", "progressDeadlineSeconds", json!(600));
    }
    let (strategy, unavailable, surge) = match &*kind.id {
        "deployments.apps" => ("strategy", json!("25%"), json!("25%")),
        "daemonsets.apps" => ("updateStrategy", json!(1), json!(0)),
        _ => return,
    };
    let place = format!("/spec/{strategy}");
    default(object, &place, "type", json!("RollingUpdate"));
    if object["spec"][strategy]["type"] == "RollingUpdate" {
        let place = format!("{place}/rollingUpdate");
        default(object, &place, "maxUnavailable", unavailable);
        default(object, &place, "maxSurge", surge);
    }
}

fn service(api: &mut Api, object: &mut Value) {
    for (field, value) in [
        ("type", json!("ClusterIP")),
        ("sessionAffinity", json!("None")),
        ("internalTrafficPolicy", json!("Cluster")),
        ("ipFamilyPolicy", json!("SingleStack")),
        ("ipFamilies", json!(["IPv4"])),
    ] {
        default(object, "/spec", field, value);
    }
    for port in items(object, "/spec/ports") {
        default(port, "", "protocol", json!("TCP"));
        let target = port["port"].clone();
        default(port, "", "targetPort", target);
    }
    if object["spec"]["clusterIP"]
        .as_str()
        .is_none_or(str::is_empty)
    {
        let number = api.next_service_ip;
        api.next_service_ip += 1;
        object["spec"]["clusterIP"] = json!(format!("10.96.{}.{}", number / 256, number % 256));
    }
    let ips = json!([object["spec"]["clusterIP"]]);
    default(object, "/spec", "clusterIPs", ips);
    default(object, "/status", "loadBalancer", json!({}));
}

fn secret(object: &mut Value) {
    default(object, "", "type", json!("Opaque"));
    let Value::Object(plain) = meta::remove(object, "stringData") else {
        return;
    };
    if object["data"].is_null() {
        object["data"] = json!({});
    }
    for (key, value) in plain {
        let text = value.as_str().unwrap_or_default();
        object["data"][key] = json!(BASE64_STANDARD.encode(text));
    }
}
