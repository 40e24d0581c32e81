//! The three metrics APIs as an autoscaler asks them. They may be anybody's: resource metrics are usually the API server's own,
//! custom and external metrics are extension servers'.

use http::Request;
use jiff::{SignedDuration, Timestamp};
use sampan_api::quantity::Quantity;
use sampan_client::is_not_found;
use serde_json::Value;

use super::replicas::{PodMetric, PodMetrics};
use crate::pods::api_message;

const RESOURCE: &str = "/apis/metrics.k8s.io/v1beta1";
const CUSTOM: &str = "custom.metrics.k8s.io";
/// The versions of custom metrics that are understood.
const CUSTOM_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
/// The window of a custom metric that does not say.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);

/// Asks as one identity.
pub(super) struct Metrics {
    pub(super) client: kube::Client,
}

/// What an object metric describes.
pub(super) struct Described<'a> {
    /// `pods`, `ingresses.networking.k8s.io`; empty for the namespace itself.
    pub(super) resource: &'a str,
    pub(super) name: &'a str,
}

/// Part of a path or a query.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

fn query(pairs: &[(&str, &str)]) -> String {
    let given = pairs.iter().filter(|(_, value)| !value.is_empty());
    let all: Vec<_> = given.map(|(key, value)| format!("{key}={}", encode(value))).collect();
    if all.is_empty() {
        String::new()
    } else {
        format!("?{}", all.join("&"))
    }
}

pub(super) async fn get(client: &kube::Client, path: &str) -> kube::Result<Value> {
    let request = Request::get(path).body(Vec::new()).map_err(kube::Error::HttpError)?;
    client.request(request).await
}

fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn time(value: &Value) -> Timestamp {
    text(value, "/timestamp").parse().unwrap_or(Timestamp::MIN)
}

fn milli(value: &Value) -> Option<i64> {
    Quantity::from_value(value).ok().map(|quantity| quantity.milli_value())
}

impl Metrics {
    /// Of a Pod the sum of its containers, or one of them.
    pub(super) async fn resource(
        &self,
        resource: &str,
        namespace: &str,
        selector: &str,
        container: &str,
    ) -> Result<PodMetrics, String> {
        let query = query(&[("labelSelector", selector)]);
        let path = format!("{RESOURCE}/namespaces/{namespace}/pods{query}");
        let list = get(&self.client, &path).await;
        let list = list.map_err(|error| {
            format!(
                "unable to fetch metrics from resource metrics API: {}",
                api_message(&error)
            )
        })?;
        if items(&list).is_empty() {
            return Err("no metrics returned from resource metrics API".into());
        }
        Ok(of_resource(&list, resource, container))
    }

    /// A custom metric of Pods.
    pub(super) async fn pods(
        &self,
        metric: &str,
        namespace: &str,
        selector: &str,
        metric_selector: &str,
    ) -> Result<PodMetrics, String> {
        let query = query(&[("labelSelector", selector), ("metricLabelSelector", metric_selector)]);
        let list = self
            .custom(&format!("/namespaces/{namespace}/pods/*/{}{query}", encode(metric)))
            .await?;
        if items(&list).is_empty() {
            return Err("no metrics returned from custom metrics API".into());
        }
        let figures = items(&list).iter().filter_map(|item| {
            let window = item.get("windowSeconds").or_else(|| item.get("window"));
            let window = window.and_then(Value::as_i64).map(SignedDuration::from_secs);
            let metric = PodMetric {
                at: time(item),
                window: window.unwrap_or(WINDOW),
                value: milli(item.get("value")?)?,
            };
            Some((text(item, "/describedObject/name").to_owned(), metric))
        });
        Ok(figures.collect())
    }

    /// A custom metric of one object, in thousandths.
    pub(super) async fn object(
        &self,
        metric: &str,
        namespace: &str,
        object: &Described<'_>,
        metric_selector: &str,
    ) -> Result<i64, String> {
        let query = query(&[("metricLabelSelector", metric_selector)]);
        let place = match object.resource {
            "" => "metrics".to_owned(),
            resource => format!("{resource}/{}", encode(object.name)),
        };
        let path = format!("/namespaces/{namespace}/{place}/{}{query}", encode(metric));
        let list = self.custom(&path).await?;
        let unable = |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
        match items(&list) {
            [one] => milli(one.get("value").unwrap_or(&Value::Null))
                .ok_or_else(|| unable("the value is not a quantity".into())),
            other => Err(unable(format!(
                "the custom metrics API server returned {} results when we asked for exactly one",
                other.len()
            ))),
        }
    }

    async fn custom(&self, path: &str) -> Result<Value, String> {
        let unable = |why: String| format!("unable to fetch metrics from custom metrics API: {why}");
        let group = match get(&self.client, &format!("/apis/{CUSTOM}")).await {
            Err(error) if is_not_found(&error) => {
                return Err(unable(format!("no custom metrics API ({CUSTOM}) registered")));
            }
            group => group.map_err(|error| unable(api_message(&error)))?,
        };
        let version =
            custom_version(&group).ok_or_else(|| unable("no known available metric versions found".into()))?;
        let list = get(&self.client, &format!("/apis/{CUSTOM}/{version}{path}")).await;
        list.map_err(|error| unable(api_message(&error)))
    }

    /// The values of an external metric, in thousandths.
    pub(super) async fn external(&self, metric: &str, namespace: &str, selector: &str) -> Result<Vec<i64>, String> {
        let query = query(&[("labelSelector", selector)]);
        let path = format!("{EXTERNAL}/namespaces/{namespace}/{}{query}", encode(metric));
        let list = get(&self.client, &path).await;
        let list = list.map_err(|error| {
            format!(
                "unable to fetch metrics from external metrics API: {}",
                api_message(&error)
            )
        })?;
        if items(&list).is_empty() {
            return Err("no metrics returned from external metrics API".into());
        }
        let values = items(&list).iter().filter_map(|item| milli(item.get("value")?));
        Ok(values.collect())
    }
}

/// The best version that is understood: what the server prefers, if it is one.
fn custom_version(group: &Value) -> Option<&'static str> {
    let served = group.get("versions").and_then(Value::as_array);
    let preferred = group.get("preferredVersion").into_iter();
    let names = preferred.chain(served.into_iter().flatten());
    let mut names = names.map(|version| text(version, "/version"));
    names.find_map(|name| CUSTOM_VERSIONS.into_iter().find(|known| *known == name))
}

/// A Pod of which one container has no figure has none.
fn of_resource(list: &Value, resource: &str, container: &str) -> PodMetrics {
    let figures = items(list).iter().filter_map(|pod| {
        let containers = pod.get("containers").and_then(Value::as_array)?;
        let value = |one: &Value| milli(one.get("usage")?.get(resource)?);
        let value = if container.is_empty() {
            let all = containers.iter().map(value).collect::<Option<Vec<_>>>()?;
            all.into_iter().reduce(i64::saturating_add)?
        } else {
            value(containers.iter().find(|one| text(one, "/name") == container)?)?
        };
        let metric = PodMetric {
            at: time(pod),
            window: go_duration(text(pod, "/window")).unwrap_or(WINDOW),
            value,
        };
        Some((text(pod, "/metadata/name").to_owned(), metric))
    });
    figures.collect()
}

/// A duration as Go prints it: `1m0.5s`, `500ms`.
fn go_duration(text: &str) -> Option<SignedDuration> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let mut rest = text;
    let mut seconds = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let unit_end = after
            .find(|char: char| char.is_ascii_digit() || char == '.')
            .unwrap_or(after.len());
        let (unit, left) = after.split_at_checked(unit_end)?;
        let (_, factor) = UNITS.iter().find(|(known, _)| *known == unit)?;
        seconds += number.parse::<f64>().ok()? * factor;
        rest = left;
    }
    SignedDuration::try_from_secs_f64(seconds).ok()
}

/// How Go prints a pointer to a label selector, which is part of some messages.
pub(super) fn go_selector(selector: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".into();
    };
    let labels = selector.match_labels.iter().flatten();
    let labels: String = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let expressions = selector.match_expressions.iter().flatten();
    let expressions: String = expressions
        .map(|need| {
            let values = need.values.clone().unwrap_or_default().join(" ");
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},",
                need.key, need.operator
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

/// Where the objects of a kind are served.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) group: String,
    pub(super) api_version: String,
    pub(super) plural: String,
}

impl Place {
    /// `deployments.apps`
    pub(super) fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    pub(super) fn scale(&self, namespace: &str, name: &str) -> String {
        let root = if self.group.is_empty() { "api" } else { "apis" };
        format!(
            "/{root}/{}/namespaces/{}/{}/{}/scale",
            self.api_version,
            encode(namespace),
            self.plural,
            encode(name)
        )
    }
}

/// Where kinds are served, as discovery says. It is asked anew for a kind that is not known, but not all the time.
#[derive(Default)]
pub(super) struct Places {
    known: tokio::sync::Mutex<Known>,
}

/// When discovery was last asked, and the places of each kind it named.
type Known = (Option<tokio::time::Instant>, Vec<(String, Place)>);

/// How soon discovery is asked again for what it did not know.
const REDISCOVER: std::time::Duration = std::time::Duration::from_secs(30);

impl Places {
    pub(super) async fn of(&self, client: &kube::Client, group: &str, kind: &str) -> Result<Vec<Place>, String> {
        let mut known = self.known.lock().await;
        let find = |places: &[(String, Place)]| -> Vec<Place> {
            let same = places.iter().filter(|(own, place)| own == kind && place.group == group);
            same.map(|(_, place)| place.clone()).collect()
        };
        let found = find(&known.1);
        let asked = known.0.is_some_and(|at| at.elapsed() < REDISCOVER);
        if !found.is_empty() {
            return Ok(found);
        }
        if !asked {
            let served = crate::discovery::served(client).await;
            let served = served.map_err(|error| api_message(&error))?;
            let places = served.into_iter().map(|served| {
                let resource = served.resource;
                let place = Place {
                    group: resource.group,
                    api_version: resource.api_version,
                    plural: resource.plural,
                };
                (resource.kind, place)
            });
            *known = (Some(tokio::time::Instant::now()), places.collect());
        }
        let found = find(&known.1);
        if found.is_empty() {
            return Err(format!("no matches for kind {kind:?} in group {group:?}"));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
    use serde_json::json;

    #[test]
    fn durations_of_go() {
        let cases = [
            ("15.021s", Some(15_021)),
            ("1m0.5s", Some(60_500)),
            ("500ms", Some(500)),
            ("1h0m0s", Some(3_600_000)),
            ("", None),
            ("5", None),
            ("5x", None),
            ("s", None),
        ];
        for (text, expected) in cases {
            let found = go_duration(text).map(|duration| duration.as_millis());
            assert_eq!(found, expected, "{text}");
        }
    }

    #[test]
    fn pods_by_all_or_one_of_their_containers() {
        let container = |name: &str, usage: Value| json!({"name": name, "usage": usage});
        let pod = |name: &str, containers: Value| json!({"metadata": {"name": name}, "timestamp": "2026-01-01T00:00:00Z", "window": "15s", "containers": containers});
        let list = json!({"items": [
            pod("whole", json!([container("a", json!({"cpu": "100m"})), container("b", json!({"cpu": "1500000n"}))])),
            pod("part", json!([container("a", json!({"cpu": "7m"})), container("b", json!({}))])),
            pod("empty", json!([])),
        ]});
        let of = |container: &str| {
            let mut found: Vec<_> = of_resource(&list, "cpu", container).into_iter().collect();
            found.sort_by(|one, other| one.0.cmp(&other.0));
            let values = found.into_iter().map(|(name, metric)| (name, metric.value));
            values.collect::<Vec<_>>()
        };
        assert_eq!(of(""), [("whole".to_owned(), 102)]);
        assert_eq!(of("a"), [("part".to_owned(), 7), ("whole".to_owned(), 100)]);
        assert_eq!(of("c"), []);
    }

    #[test]
    fn texts() {
        assert_eq!(query(&[("a", ""), ("b", "x in (y)")]), "?b=x%20in%20%28y%29");
        assert_eq!(query(&[]), "");
        assert_eq!(go_selector(None), "nil");
        let selector: LabelSelector = serde_json::from_value(json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "k", "operator": "In", "values": ["x", "y"]}]}))
        .unwrap();
        assert_eq!(
            go_selector(Some(&selector)),
            "&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpressions:[]LabelSelectorRequirement{LabelSelectorRequirement{Key:k,Operator:In,Values:[x y],},},}"
        );
        let versions = |names: &[&str]| {
            let all: Vec<_> = names.iter().map(|name| json!({"version": name})).collect();
            custom_version(&json!({"preferredVersion": all.first(), "versions": all}))
        };
        assert_eq!(versions(&["v1beta1", "v1beta2"]), Some("v1beta1"));
        assert_eq!(versions(&["v1", "v1beta2"]), Some("v1beta2"));
        assert_eq!(versions(&[]), None);
    }
}
