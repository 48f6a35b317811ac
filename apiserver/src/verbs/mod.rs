//! What each verb does to the objects.

mod admit;
mod collect;
mod create;
mod defaults;
mod delete;
mod names;
mod patch;
pub(crate) mod present;
mod read;
mod security;
mod subresource;
mod update;

use serde_json::Value;

pub(crate) use collect::make_namespace;
pub(crate) use names::json_type;

use crate::api::{Answer, Api, Call};
use crate::refusal::Refusal;

impl Api {
    /// Carries a call out.
    pub(crate) fn carry_out(&mut self, call: &Call) -> Result<Answer, Refusal> {
        if let Some(answer) = self.carry_out_special(call)? {
            return Ok(Answer::Reply(answer));
        }
        let status = call.subresource == "status"
            && call
                .kind
                .version(&call.version)
                .is_some_and(|version| version.status);
        if !call.subresource.is_empty() && !status {
            return Err(Refusal::NoSuchResource);
        }
        let named = !call.name.is_empty();
        match call.verb {
            "get" => self.get(call).map(Answer::Reply),
            "list" => self.list(call).map(Answer::Reply),
            "watch" => self.watch(call),
            "create" if !named => self.create(call).map(Answer::Reply),
            "update" if named => self.update(call).map(Answer::Reply),
            "patch" if named => self.patch(call).map(Answer::Reply),
            "delete" if !status => self.delete(call).map(Answer::Reply),
            "deletecollection" => self.delete_collection(call).map(Answer::Reply),
            _ => Err(Refusal::MethodNotAllowed),
        }
    }
}

/// Reads a body: JSON, or YAML if the content type says so (JSON is YAML too).
fn body(call: &Call) -> Result<Value, Refusal> {
    let yaml = call.content_type.contains("yaml");
    let text = std::str::from_utf8(&call.body)
        .map_err(|error| Refusal::BadRequest(format!("the body is no text: {error}")))?;
    if call.content_type.contains("protobuf") {
        return Err(Refusal::MediaType {
            code: 415,
            reason: "UnsupportedMediaType",
            message: "the body of the request was in an unknown format - accepted media types \
                      include: application/json, application/yaml"
                .to_owned(),
        });
    }
    let read = if yaml {
        serde_saphyr::from_str::<Value>(text).map_err(|error| error.to_string())
    } else {
        serde_json::from_str::<Value>(text).map_err(|error| error.to_string())
    };
    read.map_err(|error| {
        Refusal::BadRequest(format!("error decoding the body of the request: {error}"))
    })
}
