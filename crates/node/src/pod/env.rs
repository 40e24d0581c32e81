//! Environment variables of containers, and the `$(NAME)` expansion of values, commands and sub-paths.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, EnvVarSource, Pod, Secret, Service};
use sampan_runtime::KeyValue;
use sampan_volumes::Sources;
use sampan_volumes::downward::{self, Allocatable};

/// Replaces `$(NAME)` by what `lookup` knows; `$$` stands for `$`; what is unknown stays as it is.
pub fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Like [`expand`], for places where an unknown name is an error (`subPathExpr`).
pub fn expand_strict(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let out = expand(text, &|name| {
        let value = lookup(name);
        if value.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        value
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        Ok(out)
    } else {
        Err(format!("missing value for \"{}\"", missing.join("\", \"")))
    }
}

/// Looks names up in finished variables.
pub fn lookup_in(envs: &[KeyValue]) -> impl Fn(&str) -> Option<String> + '_ {
    |name| {
        let mut all = envs.iter();
        all.find(|env| env.key == name).map(|env| env.value.clone())
    }
}

/// What fields of the Pod's status and of the node a variable may name.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub node_name: String,
    pub host_ips: Vec<String>,
    pub pod_ips: Vec<String>,
    pub allocatable: Allocatable,
}

/// The variables that describe Services, as Docker links did.
pub fn service_variables<'a>(services: impl IntoIterator<Item = &'a Arc<Service>>) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let prefix = name.to_uppercase().replace('-', "_");
        let ports = spec.ports.as_deref().unwrap_or_default();
        let host = if ip.contains(':') {
            format!("[{ip}]")
        } else {
            ip.to_owned()
        };
        out.insert(format!("{prefix}_SERVICE_HOST"), ip.to_owned());
        for (index, port) in ports.iter().enumerate() {
            let number = port.port;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{number}", protocol.to_lowercase());
            if index == 0 {
                out.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
                out.insert(format!("{prefix}_PORT"), url.clone());
            }
            if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
                let port_name = port_name.to_uppercase().replace('-', "_");
                out.insert(format!("{prefix}_SERVICE_PORT_{port_name}"), number.to_string());
            }
            let link = format!("{prefix}_PORT_{number}_{protocol}");
            out.insert(format!("{link}_PROTO"), protocol.to_lowercase());
            out.insert(format!("{link}_PORT"), number.to_string());
            out.insert(format!("{link}_ADDR"), ip.to_owned());
            out.insert(link, url);
        }
    }
    out
}

/// The Services whose variables a Pod sees: its namespace's if it wants links, and always the API's own.
pub fn visible_services(pod: &Pod, all: &[Arc<Service>]) -> Vec<Arc<Service>> {
    let links = super::spec(pod).enable_service_links.unwrap_or(true);
    let mut out: Vec<Arc<Service>> = Vec::new();
    for service in all {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let is_api = namespace == "default" && service.metadata.name.as_deref() == Some("kubernetes");
        let own = links && namespace == super::namespace(pod);
        if own {
            out.retain(|other| other.metadata.name != service.metadata.name);
            out.push(service.clone());
        } else if is_api && !out.iter().any(|other| other.metadata.name == service.metadata.name) {
            out.push(service.clone());
        }
    }
    out
}

/// Computes a container's environment. The error is the message for `CreateContainerConfigError`.
pub async fn make(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    sources: &dyn Sources,
    facts: &Facts,
) -> Result<Vec<KeyValue>, String> {
    let mut out = Variables::default();
    let namespace = super::namespace(pod);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(map) = config_map(sources, namespace, &reference.name, optional).await? {
                for (key, value) in map.data.iter().flatten() {
                    out.set_from(prefix, key, value.clone());
                }
            }
        }
        if let Some(reference) = &from.secret_ref {
            let optional = reference.optional.unwrap_or(false);
            if let Some(secret) = secret(sources, namespace, &reference.name, optional).await? {
                for (key, value) in secret.data.iter().flatten() {
                    out.set_from(prefix, key, String::from_utf8_lossy(&value.0).into_owned());
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = value_of(pod, container, variable, services, sources, facts, &out).await?;
        if let Some(value) = value {
            out.set(&variable.name, value);
        }
    }
    for (name, value) in services {
        if out.get(name).is_none() {
            out.set(name, value.clone());
        }
    }
    Ok(out.0)
}

/// In order of first mention, each name once.
#[derive(Default)]
struct Variables(Vec<KeyValue>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        let mut all = self.0.iter();
        all.find(|env| env.key == name).map(|env| env.value.as_str())
    }
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|env| env.key == name) {
            Some(env) => env.value = value,
            None => self.0.push(KeyValue {
                key: name.to_owned(),
                value,
            }),
        }
    }
    /// Keys that cannot be names of variables are left out, as upstream.
    fn set_from(&mut self, prefix: &str, key: &str, value: String) {
        let name = format!("{prefix}{key}");
        let good = !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=');
        if good {
            self.set(&name, value);
        }
    }
}

async fn value_of(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    services: &BTreeMap<String, String>,
    sources: &dyn Sources,
    facts: &Facts,
    before: &Variables,
) -> Result<Option<String>, String> {
    if let Some(value) = variable.value.as_deref().filter(|value| !value.is_empty()) {
        let lookup = |name: &str| {
            before
                .get(name)
                .map(str::to_owned)
                .or_else(|| services.get(name).cloned())
        };
        return Ok(Some(expand(value, &lookup)));
    }
    let Some(source) = &variable.value_from else {
        return Ok(Some(String::new()));
    };
    from_source(pod, container, source, sources, facts).await
}

async fn from_source(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &dyn Sources,
    facts: &Facts,
) -> Result<Option<String>, String> {
    let namespace = super::namespace(pod);
    if let Some(field) = &source.field_ref {
        return field_value(pod, &field.field_path, facts)
            .map(Some)
            .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path));
    }
    if let Some(field) = &source.resource_field_ref {
        return downward::resource_field(pod, &container.name, field, &facts.allocatable)
            .map(Some)
            .map_err(|error| error.to_string());
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(map) = config_map(sources, namespace, &reference.name, optional).await? else {
            return Ok(None);
        };
        let found = map.data.as_ref().and_then(|data| data.get(&reference.key)).cloned();
        if found.is_none() && !optional {
            return Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            ));
        }
        return Ok(found);
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let Some(secret) = secret(sources, namespace, &reference.name, optional).await? else {
            return Ok(None);
        };
        let found = secret
            .data
            .as_ref()
            .and_then(|data| data.get(&reference.key))
            .map(|value| String::from_utf8_lossy(&value.0).into_owned());
        if found.is_none() && !optional {
            return Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            ));
        }
        return Ok(found);
    }
    Err("the source of an environment variable is not supported on this node".into())
}

async fn config_map(
    sources: &dyn Sources,
    namespace: &str,
    name: &str,
    optional: bool,
) -> Result<Option<Arc<ConfigMap>>, String> {
    let found = sources.config_map(namespace, name).await;
    match found.map_err(|error| error.to_string())? {
        None if !optional => Err(format!("configmap \"{name}\" not found")),
        found => Ok(found),
    }
}

async fn secret(
    sources: &dyn Sources,
    namespace: &str,
    name: &str,
    optional: bool,
) -> Result<Option<Arc<Secret>>, String> {
    let found = sources.secret(namespace, name).await;
    match found.map_err(|error| error.to_string())? {
        None if !optional => Err(format!("secret \"{name}\" not found")),
        found => Ok(found),
    }
}

fn field_value(pod: &Pod, path: &str, facts: &Facts) -> Option<String> {
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Some(match path {
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => super::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        other => return downward::metadata_field(pod, other),
    })
}

/// The objects a Pod's variables read: (kind, name), for whoever watches them.
pub fn referenced(pod: &Pod) -> Vec<(&'static str, String)> {
    let mut out = Vec::new();
    let ephemeral = super::ephemeral_containers(pod);
    let all = super::containers(pod)
        .iter()
        .chain(super::init_containers(pod))
        .chain(&ephemeral);
    for container in all {
        for from in container.env_from.iter().flatten() {
            out.extend(from.config_map_ref.iter().map(|r| ("ConfigMap", r.name.clone())));
            out.extend(from.secret_ref.iter().map(|r| ("Secret", r.name.clone())));
        }
        for source in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
            out.extend(source.config_map_key_ref.iter().map(|r| ("ConfigMap", r.name.clone())));
            out.extend(source.secret_key_ref.iter().map(|r| ("Secret", r.name.clone())));
        }
    }
    out.extend(
        super::spec(pod)
            .image_pull_secrets
            .iter()
            .flatten()
            .map(|secret| ("Secret", secret.name.clone())),
    );
    out
}

#[cfg(test)]
mod tests {
    use super::super::testing::pod;
    use super::*;
    use sampan_volumes::FakeSources;
    use serde_json::json;

    #[test]
    fn expansion() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("cost $", "cost $"),
            ("$()", "$()"),
            ("é$(A)é", "é1é"),
        ] {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
        assert!(expand_strict("$(B)/$(A)", &lookup).unwrap_err().contains("\"B\""));
        assert_eq!(expand_strict("$(A)", &lookup).as_deref(), Ok("1"));
    }

    #[test]
    fn services_become_variables() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "ns"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 5432, "name": "pg-main"}, {"port": 53, "protocol": "UDP"}]}}))
        .unwrap();
        let headless: Service = serde_json::from_value(json!({"metadata": {"name": "h", "namespace": "ns"},
            "spec": {"clusterIP": "None"}}))
        .unwrap();
        let api: Service = serde_json::from_value(json!({"metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 443}]}}))
        .unwrap();
        let all = [Arc::new(service), Arc::new(headless), Arc::new(api)];
        let linked = visible_services(&pod(json!({"containers": []})), &all);
        let got = service_variables(&linked);
        for (name, value) in [
            ("MY_DB_SERVICE_HOST", "10.0.0.1"),
            ("MY_DB_SERVICE_PORT", "5432"),
            ("MY_DB_SERVICE_PORT_PG_MAIN", "5432"),
            ("MY_DB_PORT", "tcp://10.0.0.1:5432"),
            ("MY_DB_PORT_53_UDP", "udp://10.0.0.1:53"),
            ("MY_DB_PORT_53_UDP_PROTO", "udp"),
            ("KUBERNETES_SERVICE_HOST", "10.0.0.2"),
        ] {
            assert_eq!(got.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!got.contains_key("H_SERVICE_HOST"));
        let unlinked = visible_services(&pod(json!({"containers": [], "enableServiceLinks": false})), &all);
        assert_eq!(unlinked.len(), 1);
    }

    #[tokio::test]
    async fn variables_of_every_source() {
        let sources = FakeSources::default();
        let map = serde_json::from_value(json!({"data": {"K": "v", "bad=key": "x"}})).unwrap();
        sources
            .config_maps
            .lock()
            .unwrap()
            .insert(("ns".into(), "cm".into()), map);
        let secret = serde_json::from_value(json!({"data": {"PW": "aHVudGVyMg=="}})).unwrap();
        sources
            .secrets
            .lock()
            .unwrap()
            .insert(("ns".into(), "s".into()), secret);
        let facts = Facts {
            node_name: "n1".into(),
            pod_ips: vec!["10.0.0.7".into()],
            ..Facts::default()
        };
        let services = BTreeMap::from([
            ("SVC".to_owned(), "s".to_owned()),
            ("K".to_owned(), "hidden".to_owned()),
        ]);
        let spec = |env: serde_json::Value| {
            pod(json!({"serviceAccountName": "sa", "containers": [{"name": "c",
            "resources": {"limits": {"cpu": "2"}},
            "envFrom": [{"configMapRef": {"name": "cm"}, "prefix": ""}, {"secretRef": {"name": "absent", "optional": true}}],
            "env": env}]}))
        };
        let good = spec(json!([
            {"name": "A", "value": "1"},
            {"name": "B", "value": "$(A)-$(K)-$(SVC)-$(LATER)"},
            {"name": "LATER", "value": "x"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "PW", "valueFrom": {"secretKeyRef": {"name": "s", "key": "PW"}}},
            {"name": "OPT", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
            {"name": "EMPTY"}
        ]));
        let got = make(&good, &super::super::containers(&good)[0], &services, &sources, &facts)
            .await
            .unwrap();
        let got: BTreeMap<_, _> = got.into_iter().map(|env| (env.key, env.value)).collect();
        let expected: BTreeMap<String, String> = [
            ("A", "1"),
            ("B", "1-v-s-$(LATER)"),
            ("LATER", "x"),
            ("NODE", "n1"),
            ("IP", "10.0.0.7"),
            ("CPU", "2"),
            ("PW", "hunter2"),
            ("EMPTY", ""),
            ("K", "v"),
            ("SVC", "s"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        assert_eq!(got, expected);
        for (env, message) in [
            (
                json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "no", "key": "k"}}}]),
                "configmap \"no\" not found",
            ),
            (
                json!([{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]),
                "couldn't find key k in ConfigMap ns/cm",
            ),
            (
                json!([{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
                "couldn't find key k in Secret ns/s",
            ),
        ] {
            let bad = spec(env);
            let got = make(&bad, &super::super::containers(&bad)[0], &services, &sources, &facts).await;
            assert_eq!(got.unwrap_err(), message);
        }
    }
}
