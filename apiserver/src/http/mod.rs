//! From an HTTP request to a call of the API and back: authentication, injected faults,
//! authorization, the body, the answer, the log. What a verb does is decided in `verbs/`.

mod proxy;
mod query;
mod route;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT, WARNING};
use hyper::http::request::Parts;
use hyper::{Request, Response};
use serde_json::Value;

use proxy::Onward;
pub(crate) use query::Query;
pub(crate) use route::Route;

use crate::api::{Answer, Call, Reply, Shared};
use crate::auth::{Identity, reviews};
use crate::clock;
use crate::connection::Line;
use crate::faults::Faults;
use crate::refusal::{Refusal, Subject};
use crate::requests::RequestLog;
use crate::store::Key;
use crate::{discovery, watch};

/// Largest request body, as in the real server: 3 MiB.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// The body of an answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Answers requests. Clones answer for the same server.
#[derive(Clone)]
pub(crate) struct Handler {
    shared: Arc<Shared>,
}

/// A request while it is served.
struct Pending {
    route: Route,
    query: Query,
    path: String,
    identity: Identity,
    content_type: String,
    accept: String,
    user_agent: String,
}

impl Pending {
    fn is_proxy(&self) -> bool {
        let Route {
            group,
            resource,
            subresource,
            ..
        } = &self.route;
        group.is_empty() && resource == "pods" && subresource == "proxy"
    }

    /// The route as roles see it: a list or watch that a field selector limits to one name is of that name
    /// (apiserver/pkg/endpoints/request/requestinfo.go).
    fn authorized(&self) -> Route {
        let mut route = self.route.clone();
        let several = matches!(route.verb, "list" | "watch" | "deletecollection");
        if several && route.name.is_empty() {
            let mut fields = self.query.text("fieldSelector").split(',');
            let name = fields.find_map(|field| field.strip_prefix("metadata.name="));
            route.name = name.unwrap_or_default().trim_start_matches('=').to_owned();
        }
        route
    }
}

impl Handler {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    pub(crate) fn faults(&self) -> &Faults {
        self.shared.faults()
    }

    /// Serves one request of a connection.
    pub(crate) async fn answer(&self, line: &Line, request: Request<Incoming>) -> Response<Body> {
        let (pending, allowed) = self.receive(&request);
        line.learn(&pending.identity.user, &pending.identity.client);
        let mut switches = self.faults().subscribe();
        line.served(&mut switches).await;
        let latency = switches.borrow().latency;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
            line.served(&mut switches).await;
        }
        let (head, body) = request.into_parts();
        let result = match (allowed, self.faults().injected_error()) {
            (Err(refusal), _) => Err(refusal),
            (Ok(()), Some(code)) => Err(injected(code)),
            (Ok(()), None) if pending.is_proxy() => {
                return self.hand_on(&pending, head, body).await;
            }
            (Ok(()), None) => match read(body).await {
                Ok(body) => self.serve(&pending, body),
                Err(refusal) => Err(refusal),
            },
        };
        let code = result.as_ref().map_or_else(Refusal::code, Answer::code);
        let Identity { user, client, .. } = &pending.identity;
        if is_write(pending.route.verb) && self.faults().loses_reply(user, client) {
            self.log(&pending, 0);
            line.cut();
            std::future::pending::<()>().await;
        }
        self.log(&pending, code);
        match result {
            Ok(Answer::Reply(reply)) => respond(reply),
            Ok(Answer::Watch(plan)) => stream(watch::events(Arc::clone(&self.shared), plan)),
            Err(refusal) => refuse(&refusal),
        }
    }

    /// Asks a pod instead.
    async fn hand_on(&self, pending: &Pending, head: Parts, body: Incoming) -> Response<Body> {
        let onward = self.onward(pending);
        let answered = async {
            let onward = onward?;
            let body = read(body).await?;
            onward.hand_on(head, body).await
        };
        let response = answered.await.unwrap_or_else(|refusal| refuse(&refusal));
        self.log(pending, response.status().as_u16());
        response
    }

    /// Authorizes, and finds the pod.
    fn onward(&self, pending: &Pending) -> Result<Onward, Refusal> {
        let route = &pending.route;
        let api = self.shared.lock();
        api.authorize(&pending.identity, route, &pending.path)?;
        let (kind, _) = api.resolve(route)?;
        let name = proxy::pod(&route.name);
        let key = Key {
            resource: Arc::clone(&kind.id),
            namespace: route.namespace.clone(),
            name: name.to_owned(),
        };
        let pod = api.store.get(&key);
        let pod = pod.ok_or_else(|| Refusal::NotFound(Subject::of(&kind, name)))?;
        Onward::to(pod, route, &pending.path)
    }

    /// Who asks for what, and whether the token is good.
    fn receive(&self, request: &Request<Incoming>) -> (Pending, Result<(), Refusal>) {
        let header = |name| {
            let value = request
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let uri = request.uri();
        let query = Query::parse(uri.query().unwrap_or_default());
        let mut route = Route::parse(request.method(), uri.path(), &query);
        if route.resource.is_empty() {
            route.verb = match request.method().as_str() {
                "GET" => "get",
                "POST" => "post",
                "PUT" => "put",
                "DELETE" => "delete",
                "PATCH" => "patch",
                _ => "head",
            };
        }
        let (identity, known) = match self.shared.lock().authenticate(&header(AUTHORIZATION)) {
            Ok(identity) => (identity, Ok(())),
            Err(refusal) => (Identity::default(), Err(refusal)),
        };
        let pending = Pending {
            route,
            query,
            path: uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default(),
            identity,
            content_type: header(CONTENT_TYPE),
            accept: header(ACCEPT),
            user_agent: header(USER_AGENT),
        };
        (pending, known)
    }

    /// Authorizes and carries out.
    fn serve(&self, pending: &Pending, body: Bytes) -> Result<Answer, Refusal> {
        let mut api = self.shared.lock();
        let path = pending.path.split('?').next().unwrap_or_default();
        api.authorize(&pending.identity, &pending.authorized(), path)?;
        if pending.route.resource.is_empty() {
            let document = discovery::document(api.kinds(), path)?;
            return Ok(Answer::Reply(document));
        }
        let (who, route) = (&pending.identity, &pending.route);
        if let Some(reply) = reviews::answer(&api.store, who, route, &body)? {
            return Ok(Answer::Reply(reply));
        }
        let (kind, version) = api.resolve(route)?;
        let call = Call {
            identity: pending.identity.clone(),
            verb: pending.route.verb,
            namespace: if kind.namespaced {
                pending.route.namespace.clone()
            } else {
                String::new()
            },
            kind,
            version,
            name: pending.route.name.clone(),
            subresource: pending.route.subresource.clone(),
            query: pending.query.clone(),
            content_type: pending.content_type.clone(),
            accept: pending.accept.clone(),
            user_agent: pending.user_agent.clone(),
            body,
            now: clock::now(),
            conflict: matches!(pending.route.verb, "update" | "patch")
                && self.faults().injected_conflict(),
            expired_by_http: self.faults().subscribe().borrow().expired_by_http,
        };
        api.carry_out(&call)
    }

    fn log(&self, pending: &Pending, code: u16) {
        let route = &pending.route;
        self.shared.log(RequestLog {
            at: clock::now(),
            user: pending.identity.user.clone(),
            client: pending.identity.client.clone(),
            verb: route.verb.to_owned(),
            group: route.group.clone(),
            resource: route.resource.clone(),
            subresource: route.subresource.clone(),
            namespace: route.namespace.clone(),
            name: route.name.clone(),
            code,
            path: pending.path.clone(),
            user_agent: pending.user_agent.clone(),
        });
    }
}

fn is_write(verb: &str) -> bool {
    matches!(
        verb,
        "create" | "update" | "patch" | "delete" | "deletecollection"
    )
}

fn injected(code: u16) -> Refusal {
    match code {
        429 => Refusal::TooManyRequests {
            message: "the server has received too many requests and has asked us to try again \
                      later"
                .to_owned(),
            retry_after: 1,
            causes: Vec::new(),
        },
        503 => {
            Refusal::Unavailable("the server is currently unable to handle the request".to_owned())
        }
        401 => Refusal::Unauthorized,
        410 => Refusal::Expired("The resourceVersion for the provided watch is too old.".into()),
        500 => Refusal::Internal("etcdserver: request timed out".to_owned()),
        code => Refusal::MediaType {
            code,
            reason: "Unknown",
            message: "an error on the server has prevented the request from succeeding".to_owned(),
        },
    }
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    match Limited::new(body, BODY_LIMIT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(Refusal::TooLarge { limit: BODY_LIMIT })
        }
        Err(error) => Err(Refusal::BadRequest(format!(
            "cannot read the body: {error}"
        ))),
    }
}

fn respond(reply: Reply) -> Response<Body> {
    let mut response = json(reply.code, &reply.body);
    for warning in reply.warnings {
        if let Ok(value) = format!("299 - \"{}\"", warning.replace('"', "\\\"")).parse() {
            response.headers_mut().append(WARNING, value);
        }
    }
    response
}

fn refuse(refusal: &Refusal) -> Response<Body> {
    let mut response = json(refusal.code(), &refusal.status());
    if let Some(seconds) = refusal.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn json(code: u16, body: &Value) -> Response<Body> {
    // kubectl reads a few paths as plain text (/healthz).
    let (kind, bytes) = match body {
        Value::String(text) => ("text/plain; charset=utf-8", text.clone().into_bytes()),
        body => ("application/json", body.to_string().into_bytes()),
    };
    with_type(code, kind, Full::new(Bytes::from(bytes)).boxed_unsync())
}

fn stream(body: Body) -> Response<Body> {
    with_type(200, "application/json", body)
}

fn with_type(code: u16, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code.try_into().unwrap_or_default();
    let kind = hyper::header::HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    let cache = hyper::header::HeaderValue::from_static("no-cache, private");
    response
        .headers_mut()
        .insert(hyper::header::CACHE_CONTROL, cache);
    response
}
