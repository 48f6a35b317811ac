//! From method and path to verb and resource.

use hyper::Method;

use super::query::Query;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// As RBAC names it.
    pub verb: &'static str,
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// Empty for paths that are no resources.
    pub resource: String,
    pub name: String,
    pub subresource: String,
}

impl Route {
    /// Reads method, path and query.
    pub(crate) fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(decode)
            .collect();
        let mut route = Self::default();
        let rest: &[String] = match segments.first().map(String::as_str) {
            Some("api") if segments.len() > 2 => {
                route.version.clone_from(&segments[1]);
                &segments[2..]
            }
            Some("apis") if segments.len() > 3 => {
                route.group.clone_from(&segments[1]);
                route.version.clone_from(&segments[2]);
                &segments[3..]
            }
            _ => &[],
        };
        route.place(rest);
        route.verb = verb(method, &route, query);
        route
    }

    fn place(&mut self, rest: &[String]) {
        let own = |segments: &[String]| {
            segments.len() < 3 || matches!(segments[2].as_str(), "status" | "finalize")
        };
        let rest = match rest {
            [first, namespace, more @ ..]
                if first == "namespaces" && !(self.group.is_empty() && own(rest)) =>
            {
                self.namespace.clone_from(namespace);
                more
            }
            rest => rest,
        };
        let segment = |at: usize| rest.get(at).cloned().unwrap_or_default();
        self.resource = segment(0);
        self.name = segment(1);
        self.subresource = match rest.get(2..) {
            // What follows is a path of the pod's own.
            Some([first, ..]) if first == "proxy" => first.clone(),
            more => more.map(|more| more.join("/")).unwrap_or_default(),
        };
        // A namespace is authorized in itself.
        if self.group.is_empty() && self.resource == "namespaces" {
            self.namespace.clone_from(&self.name);
        }
    }
}

fn verb(method: &Method, route: &Route, query: &Query) -> &'static str {
    let collection = route.name.is_empty() && !route.resource.is_empty();
    match *method {
        Method::GET | Method::HEAD if !collection => "get",
        Method::GET if query.flag("watch") => "watch",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

/// Undoes percent encoding.
fn decode(segment: &str) -> String {
    // A plus is a plus in a path.
    let escaped = format!("s={}", segment.replace('+', "%2B").replace('&', "%26"));
    form_urlencoded::parse(escaped.as_bytes())
        .next()
        .map(|(_, value)| value.into_owned())
        .unwrap_or_default()
}
