use super::*;
use sampan_kinds::resources;
use serde_json::json;
use std::time::Instant;

use crate::watch_cache::Entry;

/// A flow with the bootstrap objects, and rows to look storages up in.
fn flow(total: usize, extra: &[Object]) -> (Arc<Flow>, Rows) {
    let flow = Flow::new(total);
    for object in crate::bootstrap::flow_control().iter().chain(extra) {
        observe(&flow, object, ChangeType::Added);
    }
    (flow, Rows::build(resources()).0)
}

fn observe(flow: &Flow, object: &Object, change: ChangeType) {
    let (kind, prefix) = match object["kind"].as_str() {
        Some("FlowSchema") => (Kind::Schema, "flowschemas/"),
        _ => (Kind::Level, "prioritylevelconfigurations/"),
    };
    let name = sampan_api::meta::name(object);
    let key = format!("/registry/{prefix}{name}");
    let entry = Arc::new(Entry::new(
        key.into(),
        "/registry/".len() + prefix.len(),
        object.to_string().as_bytes(),
        1,
        change,
    ));
    flow.observe(kind, &Change::new(1, change, entry, None), object);
}

fn info(verb: &str, resource: &str) -> RequestInfo {
    RequestInfo {
        is_resource: true,
        verb: verb.into(),
        version: "v1".into(),
        namespace: "default".into(),
        resource: resource.into(),
        path: format!("/api/v1/namespaces/default/{resource}"),
        ..RequestInfo::default()
    }
}

fn limited(name: &str, shares: i64, response: Object) -> Object {
    json!({"kind": "PriorityLevelConfiguration", "metadata": {"name": name, "uid": format!("uid-{name}")},
        "spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": shares, "lendablePercent": 0,
            "borrowingLimitPercent": 0, "limitResponse": response}}})
}

fn for_user(name: &str, level: &str, precedence: i64) -> Object {
    json!({"kind": "FlowSchema", "metadata": {"name": name, "uid": format!("uid-{name}")}, "spec": {
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": "jane"}}],
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}]}]}})
}

const WAIT: Duration = Duration::from_millis(50);

async fn enter(flow: &Flow, rows: &Rows, user: &UserInfo, info: &RequestInfo) -> (String, Result<Seat, i64>) {
    let (mark, outcome) = flow.enter(user, info, &Query::default(), rows, WAIT).await.unwrap();
    (format!("{}/{}", mark.0.level.name, mark.0.spec.name), outcome)
}

#[tokio::test]
async fn requests_go_where_upstream_sends_them() {
    let (flow, rows) = flow(600, &[]);
    let leases = RequestInfo {
        group: "coordination.k8s.io".into(),
        ..info("update", "leases")
    };
    let health = RequestInfo {
        verb: "get".into(),
        path: "/healthz".into(),
        ..RequestInfo::default()
    };
    let node = RequestInfo {
        namespace: String::new(),
        ..info("update", "nodes")
    };
    for (user, info, wanted) in [
        (UserInfo::new("admin", ["system:masters"]), &leases, "exempt/exempt"),
        (UserInfo::anonymous(), &health, "exempt/probes"),
        (
            UserInfo::component("system:kube-scheduler"),
            &leases,
            "leader-election/system-leader-election",
        ),
        (
            UserInfo::component("system:kube-scheduler"),
            &info("list", "pods"),
            "workload-high/kube-scheduler",
        ),
        (UserInfo::node("n"), &node, "node-high/system-node-high"),
        (UserInfo::node("n"), &info("get", "pods"), "system/system-nodes"),
        (
            UserInfo::controller("job-controller"),
            &info("create", "pods"),
            "workload-high/kube-system-service-accounts",
        ),
        (
            UserInfo::service_account("default", "x", ""),
            &info("create", "pods"),
            "workload-low/service-accounts",
        ),
        (
            UserInfo::component("jane"),
            &info("get", "pods"),
            "global-default/global-default",
        ),
        (UserInfo::default(), &info("get", "pods"), "catch-all/catch-all"),
    ] {
        assert_eq!(enter(&flow, &rows, &user, info).await.0, wanted, "{user:?}");
    }
}

#[tokio::test]
async fn a_level_without_queues_turns_away_and_one_with_them_makes_wait() {
    let jane = UserInfo::component("jane");
    for (response, held) in [
        (json!({"type": "Reject"}), 0u64),
        (
            json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": 1}}),
            WAIT.as_millis() as u64,
        ),
    ] {
        let (flow, rows) = flow(600, &[limited("l", 1, response), for_user("s", "l", 5)]);
        let limit = lock(&flow.known).used["l"].1.clone();
        let seats = lock(&limit.limits).current;
        assert_eq!(seats, 3, "600 seats, 246 shares, one of them this level's");
        let mut taken = Vec::new();
        for _ in 0..seats {
            taken.push(enter(&flow, &rows, &jane, &info("get", "pods")).await.1.unwrap());
        }
        let start = Instant::now();
        let (place, outcome) = enter(&flow, &rows, &jane, &info("get", "pods")).await;
        assert_eq!((place.as_str(), outcome.err()), ("l/s", Some(1)));
        assert!(start.elapsed().as_millis() as u64 >= held);
        // Others are not concerned.
        let other = UserInfo::component("joe");
        assert!(enter(&flow, &rows, &other, &info("get", "pods")).await.1.is_ok());
        taken.pop();
        assert!(enter(&flow, &rows, &jane, &info("get", "pods")).await.1.is_ok());
        let mut text = String::new();
        metrics(&flow, &mut text);
        assert!(
            text.contains("rejected_requests_total{flow_schema=\"s\",priority_level=\"l\",reason="),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_seat_given_back_goes_to_who_waits() {
    let queue = json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 1, "queueLengthLimit": 10}});
    let (flow, rows) = flow(600, &[limited("l", 1, queue), for_user("s", "l", 5)]);
    let rows = Arc::new(rows);
    let jane = UserInfo::component("jane");
    let mut taken = Vec::new();
    for _ in 0..3 {
        taken.push(enter(&flow, &rows, &jane, &info("get", "pods")).await.1.unwrap());
    }
    let pods = info("get", "pods");
    let query = Query::default();
    let waiting = flow.enter(&jane, &pods, &query, &rows, Duration::from_secs(20));
    tokio::pin!(waiting);
    assert!(futures::poll!(waiting.as_mut()).is_pending());
    taken.pop();
    let seat = waiting.await.unwrap().1.unwrap();
    // One that stops waiting leaves no trace.
    {
        let given_up = flow.enter(&jane, &pods, &query, &rows, Duration::from_secs(20));
        tokio::pin!(given_up);
        assert!(futures::poll!(given_up.as_mut()).is_pending());
    }
    drop((seat, taken));
    let level = lock(&flow.known).used["l"].1.clone();
    assert!(level.is_idle());
    assert_eq!(lock(&level.state).cancelled, 1);
}

#[tokio::test]
async fn levels_come_and_go() {
    let (flow, rows) = flow(600, &[for_user("s", "missing", 5)]);
    let jane = UserInfo::component("jane");
    let pods = info("get", "pods");
    assert_eq!(
        enter(&flow, &rows, &jane, &pods).await.0,
        "global-default/global-default"
    );
    assert!(!flow.has_level("missing"));
    let level = limited("missing", 10, json!({"type": "Reject"}));
    observe(&flow, &level, ChangeType::Added);
    let (place, seat) = enter(&flow, &rows, &jane, &pods).await;
    assert_eq!(place, "missing/s");
    observe(&flow, &level, ChangeType::Deleted);
    assert_eq!(
        enter(&flow, &rows, &jane, &pods).await.0,
        "global-default/global-default"
    );
    assert!(lock(&flow.known).used.contains_key("missing"), "still busy");
    drop(seat);
    flow.balance(&mut lock(&flow.known));
    assert!(!lock(&flow.known).used.contains_key("missing"));
    // The mandatory ones cannot be taken away.
    for object in crate::bootstrap::flow_control() {
        observe(&flow, &object, ChangeType::Deleted);
    }
    assert_eq!(enter(&flow, &rows, &jane, &pods).await.0, "catch-all/catch-all");
}

#[tokio::test]
async fn busy_levels_borrow_from_idle_ones() {
    let (flow, rows) = flow(600, &[]);
    let level = lock(&flow.known).used["global-default"].1.clone();
    let limit = || lock(&level.limits).current;
    let before = limit();
    let jane = UserInfo::component("jane");
    let pods = info("get", "pods");
    let mut taken = Vec::new();
    for _ in 0..before {
        taken.push(enter(&flow, &rows, &jane, &pods).await.1.unwrap());
    }
    let query = Query::default();
    let waiting: Vec<_> = (0..20)
        .map(|_| flow.enter(&jane, &pods, &query, &rows, Duration::from_secs(20)))
        .map(Box::pin)
        .map(|mut future| {
            assert!(futures::FutureExt::now_or_never(future.as_mut()).is_none());
            future
        })
        .collect();
    flow.balance(&mut lock(&flow.known));
    assert!(limit() >= before + 20, "{before} {}", limit());
    for future in waiting {
        assert!(future.await.unwrap().1.is_ok());
    }
}

#[tokio::test]
async fn an_uncontended_request_is_cheap() {
    let (flow, rows) = flow(600, &[]);
    let user = UserInfo::service_account("default", "x", "");
    let pods = info("get", "pods");
    const ROUNDS: u32 = 20_000;
    let start = Instant::now();
    for _ in 0..ROUNDS {
        drop(enter_plain(&flow, &rows, &user, &pods).await);
    }
    let each = start.elapsed() / ROUNDS;
    println!("an uncontended request costs {each:?}");
    assert!(each < Duration::from_micros(200), "{each:?}");
}

async fn enter_plain(flow: &Flow, rows: &Rows, user: &UserInfo, info: &RequestInfo) -> Option<Seat> {
    let query = Query::default();
    flow.enter(user, info, &query, rows, WAIT).await?.1.ok()
}
