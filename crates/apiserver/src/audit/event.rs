//! Audit events and how they are written: as upstream's `audit.k8s.io/v1` JSON, or as its one line of text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use sampan_auth::UserInfo;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::policy::{Level, Stage};

/// What opens an event that stands alone; in a list the items have no type of their own.
const OPENING: &[u8] = br#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","#;
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// One request at one stage.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub level: Level,
    #[serde(rename = "auditID")]
    pub audit_id: String,
    pub stage: Stage,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: String,
    pub user: Arc<UserInfo>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<Arc<UserInfo>>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<ResponseStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Arc<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Arc<RawValue>>,
    #[serde(rename = "requestReceivedTimestamp", serialize_with = "micro")]
    pub received: Timestamp,
    #[serde(rename = "stageTimestamp", serialize_with = "micro")]
    pub staged: Timestamp,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What the request is about.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// The bounded part of a Status: what it is about, never a list's content.
#[derive(Clone, Default, Serialize)]
pub struct ResponseStatus {
    /// Always there, as Go writes it.
    pub metadata: Map<String, Value>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Value>,
    #[serde(skip_serializing_if = "is_zero")]
    pub code: u16,
}

impl ResponseStatus {
    /// Of an encoded Status.
    pub fn of(status: &Value, code: u16) -> Self {
        let text = |key: &str| status.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        ResponseStatus {
            metadata: Map::new(),
            status: text("status"),
            message: text("message"),
            reason: text("reason"),
            details: status.get("details").filter(|details| !details.is_null()).cloned(),
            code,
        }
    }

    pub fn code(code: u16) -> Self {
        ResponseStatus {
            code,
            ..ResponseStatus::default()
        }
    }
}

fn is_zero(code: &u16) -> bool {
    *code == 0
}

fn micro<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&sampan_api::time::format_micro(*time))
}

impl Event {
    /// The event as an item of an `EventList`.
    pub fn item(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The same without the two objects, and marked so.
    pub fn truncated(&self) -> Event {
        let mut event = self.clone();
        event.request_object = None;
        event.response_object = None;
        event.annotations.insert(TRUNCATED.into(), "true".into());
        event
    }

    /// Upstream's line of text.
    pub fn legacy(&self) -> String {
        let quoted = sampan_api::field::quote;
        let list = |groups: &[String]| groups.iter().map(|group| quoted(group)).collect::<Vec<_>>().join(",");
        let (mut user, mut groups) = ("<none>", "<none>".to_owned());
        if !self.user.name.is_empty() {
            user = &self.user.name;
            if !self.user.groups.is_empty() {
                groups = list(&self.user.groups);
            }
        }
        let (mut acting, mut acting_groups) = ("<self>", "<lookup>".to_owned());
        if let Some(other) = &self.impersonated_user {
            acting = &other.name;
            if !other.groups.is_empty() {
                acting_groups = list(&other.groups);
            }
        }
        let namespace = self.object_ref.as_ref().map_or("", |object| &object.namespace);
        let mut line = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ok = writeln!(
            line,
            "{} AUDIT: id={} stage={} ip={} method={} user={} groups={} as={} asgroups={} user-agent={} namespace={} uri={} response=\"{}\"",
            sampan_api::time::format_micro(self.received),
            quoted(&self.audit_id),
            quoted(self.stage.name()),
            quoted(
                &self
                    .source_ips
                    .first()
                    .map_or("<unknown>".to_owned(), IpAddr::to_string)
            ),
            quoted(&self.verb),
            quoted(user),
            quoted(&groups),
            quoted(acting),
            quoted(&acting_groups),
            quoted(&self.user_agent),
            quoted(if namespace.is_empty() { "<none>" } else { namespace }),
            quoted(&self.request_uri),
            self.response_status
                .as_ref()
                .map_or("<deferred>".to_owned(), |status| status.code.to_string()),
        );
        line
    }
}

/// An item as a line of its own.
pub fn line(item: &[u8]) -> Vec<u8> {
    let mut line = Vec::with_capacity(OPENING.len() + item.len());
    line.extend_from_slice(OPENING);
    // Its own opening brace is in there already.
    line.extend_from_slice(item.get(1..).unwrap_or_default());
    line.push(b'\n');
    line
}

/// Items as one `EventList`.
pub fn list(items: &[Vec<u8>]) -> Vec<u8> {
    const HEAD: &[u8] = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#;
    let size: usize = items.iter().map(|item| item.len() + 1).sum();
    let mut list = Vec::with_capacity(HEAD.len() + size + 2);
    list.extend_from_slice(HEAD);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            list.push(b',');
        }
        list.extend_from_slice(item);
    }
    list.extend_from_slice(b"]}");
    list
}

/// Takes managed fields out of an object, the items of a list and the rows of a table.
pub fn without_managed_fields(object: &mut Value) {
    let strip = |object: &mut Value| {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    };
    strip(object);
    for item in object
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        strip(item);
    }
    for row in object
        .get_mut("rows")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(object) = row.get_mut("object") {
            strip(object);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event() -> Event {
        Event {
            level: Level::Metadata,
            audit_id: "1-2".into(),
            stage: Stage::ResponseComplete,
            request_uri: "/api/v1/namespaces/a/pods?limit=500".into(),
            verb: "list".into(),
            user: Arc::new(UserInfo::new("eve", ["people"])),
            impersonated_user: None,
            source_ips: vec![IpAddr::from([192, 0, 2, 7])],
            user_agent: "kubectl/v1.36".into(),
            object_ref: Some(ObjectRef {
                resource: "pods".into(),
                namespace: "a".into(),
                api_version: "v1".into(),
                ..ObjectRef::default()
            }),
            response_status: Some(ResponseStatus::code(200)),
            request_object: None,
            response_object: None,
            received: Timestamp::new(1_700_000_000, 123_456_789).unwrap(),
            staged: Timestamp::new(1_700_000_001, 0).unwrap(),
            annotations: [("authorization.k8s.io/decision".to_owned(), "allow".to_owned())].into(),
        }
    }

    #[test]
    fn a_line_is_upstreams() {
        let text = String::from_utf8(line(&event().item().unwrap())).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","auditID":"1-2","stage":"ResponseComplete","#,
                r#""requestURI":"/api/v1/namespaces/a/pods?limit=500","verb":"list","user":{"username":"eve","groups":["people","system:authenticated"]},"#,
                r#""sourceIPs":["192.0.2.7"],"userAgent":"kubectl/v1.36","objectRef":{"resource":"pods","namespace":"a","apiVersion":"v1"},"#,
                r#""responseStatus":{"metadata":{},"code":200},"requestReceivedTimestamp":"2023-11-14T22:13:20.123456Z","#,
                r#""stageTimestamp":"2023-11-14T22:13:21.000000Z","annotations":{"authorization.k8s.io/decision":"allow"}}"#,
                "\n"
            )
        );
        assert_eq!(
            event().legacy(),
            "2023-11-14T22:13:20.123456Z AUDIT: id=\"1-2\" stage=\"ResponseComplete\" ip=\"192.0.2.7\" method=\"list\" user=\"eve\" \
             groups=\"\\\"people\\\",\\\"system:authenticated\\\"\" as=\"<self>\" asgroups=\"<lookup>\" user-agent=\"kubectl/v1.36\" \
             namespace=\"a\" uri=\"/api/v1/namespaces/a/pods?limit=500\" response=\"200\"\n"
        );
        let listed: Value = serde_json::from_slice(&list(&[event().item().unwrap(), event().item().unwrap()])).unwrap();
        assert_eq!(listed["items"].as_array().unwrap().len(), 2);
        assert_eq!(listed["items"][1]["auditID"], "1-2");
    }

    #[test]
    fn managed_fields_are_taken_out_wherever_they_are() {
        let with = json!({"metadata": {"name": "a", "managedFields": [1]}});
        let mut list = json!({"metadata": {}, "items": [with], "rows": [{"object": with}]});
        without_managed_fields(&mut list);
        assert!(!list.to_string().contains("managedFields"));
        assert_eq!(list["items"][0]["metadata"]["name"], "a");
    }
}
