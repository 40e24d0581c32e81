//! `/healthz`, `/livez`, `/readyz`, each with `?verbose`, `?exclude=` and single checks below them.

use std::borrow::Cow;

use http::Response;

use crate::body::Body;
use crate::control_plane::ControlPlane;
use crate::registry::reply::response;
use crate::request::Query;

/// Name and verdict of each check.
async fn checks(plane: &ControlPlane, kind: &str) -> Vec<(Cow<'static, str>, bool)> {
    let draining = plane.tasks.drain().is_started();
    // Upstream's name, whichever engine it is.
    let store = match plane.registry.cache.store().health().await {
        Ok(()) => true,
        Err(error) => {
            tracing::warn!(%error, "the store does not work");
            false
        }
    };
    let mut checks: Vec<(Cow<'static, str>, bool)> = vec![
        ("ping".into(), true),
        ("log".into(), true),
        ("etcd".into(), store),
        (
            "watch-cache".into(),
            plane.registry.cache.revision() > 0 || plane.is_ready(),
        ),
        ("poststarthook/bootstrap".into(), plane.is_ready()),
    ];
    if kind == "readyz" {
        checks.push(("shutdown".into(), !draining));
    }
    // A restart would not help.
    if kind != "livez" {
        let more = plane.registry.cache.store().checks();
        checks.extend(more.into_iter().map(|(name, verdict)| (name.into(), verdict.is_ok())));
    }
    checks
}

pub async fn serve(plane: &ControlPlane, segments: &[&str], query: &Query) -> Response<Body> {
    let kind = segments.first().copied().unwrap_or("healthz");
    let mut checks = checks(plane, kind).await;
    let single = segments.get(1..).unwrap_or_default().join("/");
    if !single.is_empty() {
        checks.retain(|(name, _)| *name == single);
        if checks.is_empty() {
            return response(404, "text/plain; charset=utf-8", "404 page not found\n");
        }
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let good = |name: &str, verdict: bool| verdict || excluded.contains(&name);
    let healthy = checks.iter().all(|(name, verdict)| good(name, *verdict));
    if healthy && (query.get("verbose").is_none() || !single.is_empty()) {
        return response(200, "text/plain; charset=utf-8", "ok");
    }
    let mut text = String::new();
    for (name, verdict) in &checks {
        text.push_str(&match (excluded.contains(&&**name), verdict) {
            (true, _) => format!("[+]{name} excluded: ok\n"),
            (false, true) => format!("[+]{name} ok\n"),
            (false, false) => format!("[-]{name} failed: reason withheld\n"),
        });
    }
    text.push_str(&format!("{kind} check {}\n", if healthy { "passed" } else { "failed" }));
    response(if healthy { 200 } else { 500 }, "text/plain; charset=utf-8", text)
}
