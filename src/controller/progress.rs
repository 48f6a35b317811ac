//! How far a look came: whether the objects of a cluster are made, and if not, what the API server has
//! against it and what people can do. Pure.

use kube::Error;

use super::request::RequestError;
use super::view::PodView;

/// How far a look came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everything is there.
    Made,
    /// Nothing was made: the specification is not accepted.
    NotAccepted,
    /// Some requests came to nothing; the rest is done, and these are repeated.
    Refused(Vec<Trouble>),
    /// The cluster is deleted, and pods are still there; these should have ended.
    Leaving(Vec<Stuck>),
}

/// A request that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{attempt}: {why}; {advice}")]
pub struct Trouble {
    attempt: String,
    /// The API server's words, or why there are none.
    why: String,
    advice: &'static str,
}

impl From<&RequestError> for Trouble {
    fn from(error: &RequestError) -> Self {
        let (attempt, why) = match error {
            RequestError::Failed { attempt, source } => (attempt, said(source)),
            RequestError::Late { attempt } => (attempt, "no answer in time".to_owned()),
        };
        Self {
            attempt: attempt.clone(),
            advice: advice(&why),
            why,
        }
    }
}

fn said(error: &Error) -> String {
    match error {
        Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// What to do, by the API server's words: it has one code, 403, for very different matters.
fn advice(why: &str) -> &'static str {
    let known = [
        (
            "violates PodSecurity",
            "label the namespace pod-security.kubernetes.io/enforce=privileged: members have volumes from their node",
        ),
        (
            "exceeded quota",
            "raise the ResourceQuota of the namespace, or lower spec.resources",
        ),
        (
            "PriorityClass",
            "make that PriorityClass, or change spec.priorityClassName",
        ),
        (
            "is being terminated",
            "the namespace is being deleted: nothing can be made in it any more",
        ),
        (
            "cannot",
            "give the controller the rights of deploy/base/controller-rbac.yaml",
        ),
    ];
    let mut known = known.into_iter();
    known
        .find(|(words, _)| why.contains(words))
        .map_or("it is tried again every few seconds", |(_, what)| what)
}

/// A pod that was told to end, and has not although its time is over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "pod {pod} on node {node} does not end although its time is over. If the node is up, see its kubelet and agent; \
     if it is lost, make sure that it is off, then: kubectl delete pod {pod} --force. Nothing on the volume is lost by \
     that: the next member to use it fences first"
)]
pub struct Stuck {
    pod: String,
    node: String,
}

impl From<&PodView> for Stuck {
    fn from(pod: &PodView) -> Self {
        let node = pod.node.clone();
        Self {
            pod: pod.name.clone(),
            node: node.unwrap_or_else(|| "(none)".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn what_the_api_server_says_is_told_with_what_to_do() {
        let cases = [
            (
                "pods \"main-a\" is forbidden: violates PodSecurity \"baseline:latest\": hostPath volumes",
                "label the namespace",
            ),
            (
                "pods \"main-a\" is forbidden: exceeded quota: q, requested: cpu=1",
                "raise the ResourceQuota",
            ),
            (
                "pods \"main-a\" is forbidden: no PriorityClass with name high was found",
                "make that PriorityClass",
            ),
            (
                "pods is forbidden: User \"c\" cannot create resource \"pods\" in API group \"\"",
                "give the controller the rights",
            ),
            ("the storage is full", "it is tried again"),
        ];
        for (message, advice) in cases {
            let status = Status {
                message: message.to_owned(),
                code: 403,
                ..Status::default()
            };
            let error = RequestError::Failed {
                attempt: "make pod main-a".to_owned(),
                source: Box::new(Error::Api(status.boxed())),
            };
            let told = Trouble::from(&error).to_string();
            let head = format!("make pod main-a: {message}; {advice}");
            assert!(told.starts_with(&head), "{told}");
        }
    }
}
