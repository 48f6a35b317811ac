//! Who may do what: tokens, roles, reviews, the log of requests.

use apiserver::{ADMIN, Identity, Server};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::KubeConfigOptions;
use serde_json::{Value, json};

use crate::common::{api, config, create, lease, object, raw, refused, resource, server};

const RBAC: &str = "rbac.authorization.k8s.io";

async fn grant(server: &Server, subject: Value, rules: Value) {
    let client = server.client(ADMIN).await;
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "Role", "metadata": { "name": "r" },
        "rules": rules,
    });
    create(&api(&client, RBAC, "Role", "roles"), &object(role)).await;
    let binding = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "RoleBinding", "metadata": { "name": "r" },
        "roleRef": { "apiGroup": RBAC, "kind": "Role", "name": "r" }, "subjects": [subject],
    });
    create(
        &api(&client, RBAC, "RoleBinding", "rolebindings"),
        &object(binding),
    )
    .await;
}

fn user(name: &str) -> Value {
    json!({ "kind": "User", "apiGroup": RBAC, "name": name })
}

#[tokio::test]
async fn a_role_allows_what_it_says_and_nothing_else() {
    let server = server().await;
    let rules = json!([{
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
        "resourceNames": ["main"], "verbs": ["get", "list", "update"],
    }, {
        "apiGroups": [""], "resources": ["pods/status"], "verbs": ["*"],
    }]);
    grant(&server, user("ann"), rules).await;
    let admin = server.client(ADMIN).await;
    let all_leases = api(&admin, "coordination.k8s.io", "Lease", "leases");
    let mut made = create(&all_leases, &lease("main", "a")).await;
    let ann = server.client("ann").await;
    let leases = api(&ann, "coordination.k8s.io", "Lease", "leases");
    leases.get("main").await.unwrap();
    made.data["spec"]["holderIdentity"] = json!("b");
    leases
        .replace("main", &PostParams::default(), &made)
        .await
        .unwrap();
    let status = refused(leases.get("other").await);
    assert_eq!((status.code, status.reason.as_str()), (403, "Forbidden"));
    assert_eq!(
        status.message,
        "leases.coordination.k8s.io \"other\" is forbidden: User \"ann\" cannot get resource \
         \"leases\" in API group \"coordination.k8s.io\" in the namespace \"default\""
    );
    let status = refused(leases.list(&ListParams::default()).await);
    assert_eq!(status.code, 403, "a name does not allow a list of all");
    let of = |name: &str| ListParams::default().fields(&format!("metadata.name={name}"));
    assert_eq!(leases.list(&of("main")).await.unwrap().items.len(), 1);
    assert_eq!(refused(leases.list(&of("other")).await).code, 403);
    assert_eq!(
        refused(leases.delete("main", &DeleteParams::default()).await).code,
        403
    );
    let pods = api(&ann, "", "Pod", "pods");
    assert_eq!(refused(pods.get("p").await).code, 403);
    assert_eq!(
        refused(pods.get_status("p").await).code,
        404,
        "the subresource is allowed"
    );
    let far: Api<DynamicObject> = Api::namespaced_with(
        ann,
        "kube-system",
        &resource("coordination.k8s.io", "Lease", "leases"),
    );
    assert_eq!(refused(far.get("main").await).code, 403);
}

#[tokio::test]
async fn groups_cluster_roles_and_revocation() {
    let server = server().await;
    let admin = server.client(ADMIN).await;
    let role = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRole", "metadata": { "name": "r" },
        "rules": [{ "apiGroups": ["*"], "resources": ["*"], "verbs": ["list"] }],
    });
    let roles = Api::all_with(
        admin.clone(),
        &resource(RBAC, "ClusterRole", "clusterroles"),
    );
    create(&roles, &object(role)).await;
    let binding = json!({
        "apiVersion": format!("{RBAC}/v1"), "kind": "ClusterRoleBinding",
        "metadata": { "name": "r" },
        "roleRef": { "apiGroup": RBAC, "kind": "ClusterRole", "name": "r" },
        "subjects": [{ "kind": "Group", "apiGroup": RBAC, "name": "readers" }],
    });
    let kind = resource(RBAC, "ClusterRoleBinding", "clusterrolebindings");
    let bindings = Api::all_with(admin, &kind);
    create(&bindings, &object(binding)).await;
    let bob = server.client_of(&Identity::user("bob", &["readers"])).await;
    let nodes: Api<DynamicObject> = Api::all_with(bob.clone(), &resource("", "Node", "nodes"));
    nodes.list(&ListParams::default()).await.unwrap();
    assert_eq!(refused(nodes.get("n").await).code, 403);
    bindings
        .delete("r", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(refused(nodes.list(&ListParams::default()).await).code, 403);
}

/// A write that turns out to make the object needs the right to create it.
#[tokio::test]
async fn an_apply_that_creates_needs_create() {
    let server = server().await;
    let rules = json!([
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"] },
        { "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["update"] },
    ]);
    grant(&server, user("ann"), rules).await;
    let ann = server.client("ann").await;
    let maps = api(&ann, "", "ConfigMap", "configmaps");
    let patch = Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap" }));
    let params = PatchParams::apply("ann");
    assert_eq!(refused(maps.patch("c", &params, &patch).await).code, 403);
    let leases = api(&ann, "coordination.k8s.io", "Lease", "leases");
    let put = leases
        .replace("main", &PostParams::default(), &lease("main", "a"))
        .await;
    assert_eq!(refused(put).code, 403);
    let admin = api(&server.client(ADMIN).await, "", "ConfigMap", "configmaps");
    create(&admin, &config("c", json!({}))).await;
    maps.patch("c", &params, &patch).await.unwrap();
}

#[tokio::test]
async fn bad_tokens_and_no_token() {
    let server = server().await;
    let mut config = server.kubeconfig(ADMIN);
    config.auth_infos[0].auth_info.as_mut().unwrap().token = Some("guess".to_owned().into());
    let options = KubeConfigOptions::default();
    let stranger = kube::Config::from_custom_kubeconfig(config.clone(), &options)
        .await
        .unwrap();
    let stranger = kube::Client::try_from(stranger).unwrap();
    let status = refused(
        stranger.apiserver_version().await.map(drop).and(
            api(&stranger, "", "Pod", "pods")
                .list(&ListParams::default())
                .await,
        ),
    );
    assert_eq!((status.code, status.reason.as_str()), (401, "Unauthorized"));
    config.auth_infos[0].auth_info.as_mut().unwrap().token = None;
    let nobody = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    let nobody = kube::Client::try_from(nobody).unwrap();
    nobody
        .apiserver_version()
        .await
        .expect("the version is public");
    let status = refused(
        api(&nobody, "", "Pod", "pods")
            .list(&ListParams::default())
            .await,
    );
    assert_eq!(status.code, 403);
    assert!(
        status.message.contains("User \"system:anonymous\""),
        "{}",
        status.message
    );
}

#[tokio::test]
async fn a_pods_token_lives_as_long_as_the_pod() {
    let server = server().await;
    let admin = server.client(ADMIN).await;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "main" },
    });
    create(
        &api(&admin, "", "ServiceAccount", "serviceaccounts"),
        &object(account),
    )
    .await;
    let pods = api(&admin, "", "Pod", "pods");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "main-a" },
        "spec": { "serviceAccountName": "main",
                  "containers": [{ "name": "main", "image": "a" }] },
    });
    let uid = create(&pods, &object(pod)).await.metadata.uid.unwrap();
    let subject = json!({ "kind": "ServiceAccount", "name": "main", "namespace": "default" });
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
    grant(&server, subject, rules).await;

    let path = "/api/v1/namespaces/default/serviceaccounts/main/token";
    let reference = |uid: &str| {
        json!({ "spec": { "audiences": [], "expirationSeconds": 3600, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": "main-a", "uid": uid,
        } } })
    };
    assert_eq!(
        refused(raw(&admin, "POST", path, reference("other")).await).code,
        409
    );
    let short = json!({ "spec": { "audiences": [], "expirationSeconds": 60 } });
    assert_eq!(refused(raw(&admin, "POST", path, short).await).code, 422);
    let made = raw(&admin, "POST", path, reference(&uid)).await.unwrap();
    let token = made["status"]["token"].as_str().unwrap().to_owned();

    let mut config = server.kubeconfig("nobody");
    config.auth_infos[0].auth_info.as_mut().unwrap().token = Some(token.into());
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options)
        .await
        .unwrap();
    let own = api(&kube::Client::try_from(config).unwrap(), "", "Pod", "pods");
    own.get("main-a").await.unwrap();
    let last = server.requests().pop().unwrap();
    assert_eq!(last.user, "system:serviceaccount:default:main");
    assert_eq!(last.client, "main-a");
    pods.delete("main-a", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(refused(own.get("main-a").await).code, 401);
}

#[tokio::test]
async fn one_may_ask_about_oneself() {
    let server = server().await;
    let rules = json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]);
    grant(&server, user("ann"), rules).await;
    let ann = server.client("ann").await;
    let ask = async |verb: &str, namespace: &str| {
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let review = json!({ "spec": { "resourceAttributes": {
            "verb": verb, "resource": "pods", "namespace": namespace,
        } } });
        raw(&ann, "POST", path, review).await.unwrap()["status"]["allowed"] == true
    };
    assert!(ask("get", "default").await);
    assert!(!ask("delete", "default").await);
    assert!(!ask("get", "kube-system").await);
    let path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let review = json!({ "spec": { "namespace": "default" } });
    let review = raw(&ann, "POST", path, review).await.unwrap();
    assert_eq!(
        review["status"]["resourceRules"][0]["verbs"],
        json!(["get"])
    );
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let review = raw(&ann, "POST", path, json!({})).await.unwrap();
    assert_eq!(review["status"]["userInfo"]["username"], "ann");
}

#[tokio::test]
async fn every_request_is_in_the_log() {
    let server = server().await;
    let ann = server
        .client_of(&Identity::user("ann", &["system:masters"]).client("ann-1"))
        .await;
    server.forget_requests();
    let maps = api(&ann, "", "ConfigMap", "configmaps");
    create(&maps, &config("c", json!({}))).await;
    let patch = Patch::Merge(json!({ "data": { "x": "1" } }));
    maps.patch("c", &PatchParams::default(), &patch)
        .await
        .unwrap();
    maps.get("missing").await.unwrap_err();
    let watch = maps
        .watch(&kube::api::WatchParams::default(), "0")
        .await
        .unwrap();
    drop(watch);
    maps.delete_collection(&DeleteParams::default(), &ListParams::default())
        .await
        .unwrap();
    let said: Vec<(String, String, u16)> = server
        .requests()
        .into_iter()
        .inspect(|request| {
            assert_eq!(
                (request.user.as_str(), request.client.as_str()),
                ("ann", "ann-1")
            );
            assert_eq!(
                (request.group.as_str(), request.resource.as_str()),
                ("", "configmaps")
            );
            assert_eq!(request.namespace, "default");
        })
        .map(|request| (request.verb, request.name, request.code))
        .collect();
    let expected = [
        ("create", "", 201),
        ("patch", "c", 200),
        ("get", "missing", 404),
        ("watch", "", 200),
        ("deletecollection", "", 200),
    ];
    let expected: Vec<(String, String, u16)> = expected
        .map(|(verb, name, code)| (verb.to_owned(), name.to_owned(), code))
        .into();
    assert_eq!(said, expected);
}
