//! The downward API: values of a Pod's fields and of its containers' resources, as text.
//!
//! Shared by downward API volumes and by the node's environment variables. Pure. Values that only the node knows
//! (addresses, allocatable resources) come in as arguments.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::VolumeError;

/// A quantity in billionths of its unit, rounded up; `None` when the text is not a quantity.
///
/// Exact within what fits 128 bits: `i128::MAX` nanos is far above any quantity a node deals in; larger saturate.
pub fn nanos(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.as_str();
    let digits_end = text
        .char_indices()
        .find(|(at, c)| !(c.is_ascii_digit() || *c == '.' || (*at == 0 && (*c == '+' || *c == '-'))))
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(digits_end);
    let (negative, number) = match number.as_bytes().first()? {
        b'-' => (true, &number[1..]),
        b'+' => (false, &number[1..]),
        _ => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    // The number as `mantissa / 10^scale`, then multiplied by the suffix.
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if !digit.is_ascii_digit() {
            return None;
        }
        mantissa = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    let (multiplier, exponent): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        _ => (
            1,
            suffix
                .strip_prefix(['e', 'E'])?
                .parse::<i32>()
                .ok()
                .filter(|exponent| (-100..=100).contains(exponent))?,
        ),
    };
    let exponent = exponent + 9 - i32::try_from(fraction.len()).ok()?;
    let mut value = mantissa.saturating_mul(multiplier);
    for _ in 0..exponent.max(0) {
        value = value.saturating_mul(10);
    }
    for _ in 0..exponent.min(0).unsigned_abs() {
        value = value / 10 + i128::from(value % 10 != 0);
    }
    Some(if negative { -value } else { value })
}

/// Whole units, rounded up as upstream's `Value()`.
pub fn units(quantity: &Quantity) -> Option<i64> {
    nanos(quantity).map(|n| saturate(ceil_div(n, 1_000_000_000)))
}

/// Thousandths, rounded up as upstream's `MilliValue()`.
pub fn millis(quantity: &Quantity) -> Option<i64> {
    nanos(quantity).map(|n| saturate(ceil_div(n, 1_000_000)))
}

fn ceil_div(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// What the node knows and a Pod's spec does not say.
#[derive(Clone, Debug, Default)]
pub struct Allocatable(pub BTreeMap<String, Quantity>);

/// The text of a metadata field: the paths that volumes and variables have in common.
pub fn metadata_field(pod: &Pod, path: &str) -> Option<String> {
    let meta = &pod.metadata;
    if let Some((map_path, key)) = subscript(path) {
        let map = match map_path {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return None,
        };
        return Some(map.and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    match path {
        "metadata.name" => Some(meta.name.clone().unwrap_or_default()),
        "metadata.namespace" => Some(meta.namespace.clone().unwrap_or_default()),
        "metadata.uid" => Some(meta.uid.clone().unwrap_or_default()),
        "metadata.labels" => Some(format_map(meta.labels.as_ref())),
        "metadata.annotations" => Some(format_map(meta.annotations.as_ref())),
        _ => None,
    }
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let key = key
        .strip_prefix('\'')
        .and_then(|k| k.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|k| k.strip_suffix('"')))?;
    Some((map, key))
}

/// `key="value"` lines, sorted by key, values quoted as Go's `%q` does.
pub fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", go_quote(value)))
        .collect();
    lines.join("\n")
}

fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\x0b' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c if (0x80..0xa1).contains(&(c as u32)) || c as u32 == 0xad || c as u32 == 0xfeff => {
                out.push_str(&format!("\\u{:04x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|container| container.name == name)
}

/// The value of a `resourceFieldRef` for the container it names (volumes) or sits in (variables).
pub fn resource_field(
    pod: &Pod,
    container: &str,
    selector: &ResourceFieldSelector,
    allocatable: &Allocatable,
) -> Result<String, VolumeError> {
    let name = selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
        .unwrap_or(container);
    let found =
        find_container(pod, name).ok_or_else(|| VolumeError::Downward(format!("container {name} not found")))?;
    container_resource(
        found.resources.as_ref(),
        pod.spec.as_ref().and_then(|spec| spec.resources.as_ref()),
        selector,
        allocatable,
    )
}

fn container_resource(
    resources: Option<&ResourceRequirements>,
    pod_level: Option<&ResourceRequirements>,
    selector: &ResourceFieldSelector,
    allocatable: &Allocatable,
) -> Result<String, VolumeError> {
    let unsupported = || VolumeError::Downward(format!("unsupported container resource : {}", selector.resource));
    let (side, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let known = matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with("hugepages-");
    if !known || !matches!(side, "limits" | "requests") {
        return Err(unsupported());
    }
    let limits = |requirements: Option<&ResourceRequirements>| -> Option<Quantity> {
        requirements?.limits.as_ref()?.get(name).cloned()
    };
    let amount = if side == "limits" {
        // A container without a limit may use what its pod, or else the node, allows.
        limits(resources)
            .filter(|quantity| nanos(quantity) != Some(0))
            .or_else(|| limits(pod_level))
            .or_else(|| {
                allocatable
                    .0
                    .get(name)
                    .cloned()
                    .filter(|_| !name.starts_with("hugepages-"))
            })
    } else {
        resources
            .and_then(|r| r.requests.as_ref())
            .and_then(|requests| requests.get(name))
            .cloned()
    };
    let bad = || VolumeError::Downward(format!("{} is not a quantity", selector.resource));
    let value = amount.map_or(Some(0), |q| nanos(&q)).ok_or_else(bad)?;
    let divisor = match &selector.divisor {
        Some(divisor) => nanos(divisor).ok_or_else(bad)?,
        None => 0,
    };
    // Both are first rounded up to the resource's grain, as upstream does; no divisor means one unit.
    let (grain, one) = if name == "cpu" {
        (1_000_000, 1000)
    } else {
        (1_000_000_000, 1)
    };
    let divisor = match ceil_div(divisor, grain) {
        0 => one,
        divisor => divisor,
    };
    Ok(ceil_div(ceil_div(value, grain), divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn quantities_are_read_exactly() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1", Some(1_000_000_000)),
            ("100m", Some(100_000_000)),
            ("1.5", Some(1_500_000_000)),
            (".5", Some(500_000_000)),
            ("1Ki", Some(1024 * 1_000_000_000)),
            ("1.5Gi", Some(1_610_612_736 * 1_000_000_000)),
            ("1e3", Some(1000 * 1_000_000_000)),
            ("1E", Some(1_000_000_000_000_000_000 * 1_000_000_000)),
            ("-2", Some(-2_000_000_000)),
            ("1n", Some(1)),
            ("0.1n", Some(1)),
            ("", None),
            ("m", None),
            ("1x", None),
            ("1.2.3", None),
            ("1e1000", None),
        ] {
            assert_eq!(nanos(&Quantity(text.into())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("1001m".into())), Some(2));
        assert_eq!(millis(&Quantity("1u".into())), Some(1));
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "say \"hi\"\n"}, "annotations": {"x/y": "z"}},
            "spec": {"containers": [{"name": "c", "resources": {
                "limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}},
                {"name": "free"}]}
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let pod = pod();
        for (path, expected) in [
            ("metadata.name", Some("p")),
            ("metadata.uid", Some("u")),
            ("metadata.labels", Some("a=\"say \\\"hi\\\"\\n\"\nb=\"2\"")),
            ("metadata.labels['b']", Some("2")),
            ("metadata.labels['absent']", Some("")),
            ("metadata.annotations['x/y']", Some("z")),
            ("metadata.annotations", Some("x/y=\"z\"")),
            ("spec.nodeName", None),
            ("spec.x['y']", None),
        ] {
            assert_eq!(metadata_field(&pod, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn resources_with_divisors_and_node_defaults() {
        let pod = pod();
        let node = Allocatable(BTreeMap::from([
            ("cpu".to_owned(), Quantity("4".into())),
            ("memory".to_owned(), Quantity("8Gi".into())),
        ]));
        for (container, resource, divisor, expected) in [
            ("c", "limits.cpu", "", Ok("2")),
            ("c", "limits.cpu", "1m", Ok("1500")),
            ("c", "requests.cpu", "1m", Ok("250")),
            ("c", "limits.memory", "1Mi", Ok("64")),
            ("c", "limits.memory", "", Ok("67108864")),
            ("c", "requests.memory", "", Ok("0")),
            ("free", "limits.cpu", "", Ok("4")),
            ("free", "limits.memory", "1Gi", Ok("8")),
            ("free", "requests.cpu", "", Ok("0")),
            ("c", "limits.pods", "", Err(())),
            ("none", "limits.cpu", "", Err(())),
        ] {
            let selector = ResourceFieldSelector {
                container_name: None,
                resource: resource.into(),
                divisor: (!divisor.is_empty()).then(|| Quantity(divisor.into())),
            };
            let got = resource_field(&pod, container, &selector, &node);
            assert_eq!(
                got.as_deref().map_err(|_| ()),
                expected,
                "{container} {resource} {divisor}"
            );
        }
    }
}
