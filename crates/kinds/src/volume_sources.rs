//! The kinds of storage: those a Pod can name in its volumes and those a PersistentVolume can stand for, with what
//! each cannot do without. One table, because most are both.
//!
//! Paths in errors are upstream's, its slips included (`persistentDisk`, `cephFS`, `initiatorname`): clients have seen
//! them for years.

use sampan_api::field::{Error, Errors, Path};
use sampan_api::names as api;
use serde_json::Value;

use crate::checks::{self, Check, Rule};
use crate::{names, tree};

/// Where a source stands, and under what name.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// In a Pod's volume of this name.
    Pod(&'a str),
    /// In the PersistentVolume of this name.
    Volume(&'a str),
}

#[derive(Clone, Copy)]
enum In {
    Pod,
    Volume,
    Both,
}

type More = fn(&Value, &Path, Place<'_>, &mut Errors);

struct Source {
    kind: &'static str,
    place: In,
    rules: &'static [Check],
    /// What no row can say.
    more: More,
}

const fn plain(kind: &'static str, place: In, rules: &'static [Check]) -> Source {
    with(kind, place, rules, |_, _, _, _| {})
}

const fn with(kind: &'static str, place: In, rules: &'static [Check], more: More) -> Source {
    Source {
        kind,
        place,
        rules,
        more,
    }
}

/// What a list of a ConfigMap's or Secret's keys demands.
pub(crate) const ITEMS: [Check; 3] = [
    ("items[].key", Rule::Required("")),
    ("items[].path", Rule::RequiredNamed(names::local_path)),
    ("items[].mode", Rule::Mode),
];
const HOST_PATH_TYPES: &[&str] = &[
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];
const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";

/// In the order in which upstream looks at a Pod's.
const SOURCES: &[Source] = &[
    plain("emptyDir", In::Pod, &[]),
    plain(
        "hostPath",
        In::Both,
        &[
            ("path", Rule::RequiredNamed(names::no_backsteps)),
            ("type", Rule::OneOf(HOST_PATH_TYPES)),
        ],
    ),
    plain(
        "gitRepo",
        In::Pod,
        &[
            ("repository", Rule::Required("")),
            ("directory", Rule::Named(names::descending_path)),
        ],
    ),
    with(
        "gcePersistentDisk",
        In::Both,
        &[("pdName", Rule::Required(""))],
        partition,
    ),
    with(
        "awsElasticBlockStore",
        In::Both,
        &[("volumeID", Rule::Required(""))],
        partition,
    ),
    plain(
        "secret",
        In::Pod,
        &[
            ("secretName", Rule::Required("")),
            ("defaultMode", Rule::Mode),
            ITEMS[0],
            ITEMS[1],
            ITEMS[2],
        ],
    ),
    with(
        "nfs",
        In::Both,
        &[("server", Rule::Required("")), ("path", Rule::Required(""))],
        absolute,
    ),
    with("iscsi", In::Both, &[("targetPortal", Rule::Required(""))], iscsi),
    with(
        "glusterfs",
        In::Both,
        &[("endpoints", Rule::Required("")), ("path", Rule::Required(""))],
        endpoints,
    ),
    with("flocker", In::Both, &[], flocker),
    plain("persistentVolumeClaim", In::Pod, &[("claimName", Rule::Required(""))]),
    plain(
        "rbd",
        In::Both,
        &[("monitors", Rule::Required("")), ("image", Rule::Required(""))],
    ),
    with("cinder", In::Both, &[("volumeID", Rule::Required(""))], secret),
    plain("cephfs", In::Both, &[("monitors", Rule::Required(""))]),
    with("quobyte", In::Both, &[("registry", Rule::Required(PAIRS))], quobyte),
    plain("downwardAPI", In::Pod, &[("defaultMode", Rule::Mode)]),
    with("fc", In::Both, &[], fibre_channel),
    with("flexVolume", In::Both, &[("driver", Rule::Required(""))], options),
    plain(
        "configMap",
        In::Pod,
        &[
            ("name", Rule::Required("")),
            ("defaultMode", Rule::Mode),
            ITEMS[0],
            ITEMS[1],
            ITEMS[2],
        ],
    ),
    with(
        "azureFile",
        In::Both,
        &[("secretName", Rule::Required("")), ("shareName", Rule::Required(""))],
        |source, path, place, errors| {
            let set = tree::get(source, "secretNamespace").and_then(Value::as_str);
            if matches!(place, Place::Volume(_)) && set == Some("") {
                errors.push(Error::required(&path.child("secretNamespace"), ""));
            }
        },
    ),
    plain("vsphereVolume", In::Both, &[("volumePath", Rule::Required(""))]),
    plain("photonPersistentDisk", In::Both, &[("pdID", Rule::Required(""))]),
    plain("portworxVolume", In::Both, &[("volumeID", Rule::Required(""))]),
    with(
        "azureDisk",
        In::Both,
        &[
            ("diskName", Rule::Required("")),
            ("diskURI", Rule::Required("")),
            ("cachingMode", Rule::OneOf(&["None", "ReadOnly", "ReadWrite"])),
            ("kind", Rule::OneOf(&["Dedicated", "Managed", "Shared"])),
        ],
        disk_address,
    ),
    with(
        "storageos",
        In::Both,
        &[
            ("volumeName", Rule::RequiredNamed(api::dns1123_label)),
            ("volumeNamespace", Rule::Named(api::dns1123_label)),
        ],
        secret,
    ),
    plain("projected", In::Pod, &[("defaultMode", Rule::Mode)]),
    plain(
        "scaleIO",
        In::Both,
        &[
            ("gateway", Rule::Required("")),
            ("system", Rule::Required("")),
            ("volumeName", Rule::Required("")),
        ],
    ),
    plain(
        "local",
        In::Volume,
        &[("path", Rule::RequiredNamed(names::no_backsteps))],
    ),
    with("csi", In::Pod, &[], |source, path, _, errors| {
        driver(source, path, errors);
        if let Some(reference) = tree::get(source, "nodePublishSecretRef") {
            let named: &[Check] = &[("name", Rule::Required(""))];
            checks::run_at(named, reference, &path.child("nodePublishSecretRef"), None, errors);
            let formed: &[Check] = &[("name", Rule::Named(api::dns1123_subdomain))];
            checks::run_at(formed, reference, path, None, errors);
        }
    }),
    with("csi", In::Volume, &[], |source, path, _, errors| {
        driver(source, path, errors);
        checks::run_at(&[("volumeHandle", Rule::Required(""))], source, path, None, errors);
        for field in [
            "controllerPublishSecretRef",
            "controllerExpandSecretRef",
            "nodePublishSecretRef",
            "nodeExpandSecretRef",
        ] {
            if let Some(reference) = tree::get(source, field) {
                checks::run_at(SECRET_NAMES, reference, &path.child(field), None, errors);
            }
        }
    }),
    plain("ephemeral", In::Pod, &[("volumeClaimTemplate", Rule::Required(""))]),
    plain(
        "image",
        In::Pod,
        &[("pullPolicy", Rule::RequiredOneOf(&["Always", "IfNotPresent", "Never"]))],
    ),
];

const SECRET_NAMES: &[Check] = &[
    ("name", Rule::RequiredNamed(api::dns1123_subdomain)),
    ("namespace", Rule::RequiredNamed(api::dns1123_label)),
];

/// The sources in `spec`, in the table's order: none, or one if it is valid.
fn stated<'a>(spec: &'a Value, place: Place<'_>) -> impl Iterator<Item = (&'static Source, &'a Value)> {
    let volume = matches!(place, Place::Volume(_));
    SOURCES
        .iter()
        .filter(move |source| match source.place {
            In::Both => true,
            In::Pod => !volume,
            In::Volume => volume,
        })
        .filter_map(|source| Some((source, tree::get(spec, source.kind)?)))
}

/// The sources in `spec` by their kind.
pub(crate) fn only<'a>(spec: &'a Value, place: Place<'_>) -> impl Iterator<Item = (&'static str, &'a Value)> {
    stated(spec, place).map(|(source, value)| (source.kind, value))
}

/// Demands exactly one source below `path`, and of it what its row says. Returns which it is, and where.
pub(crate) fn check<'a>(
    spec: &'a Value,
    path: &Path,
    place: Place<'_>,
    errors: &mut Errors,
) -> Option<(&'static str, &'a Value, Path)> {
    let mut found = None;
    for (source, value) in stated(spec, place) {
        if found.is_some() {
            let among = match source.kind {
                "cephfs" => "cephFS",
                "downwardAPI" => "downwarAPI",
                kind => kind,
            };
            errors.push(Error::forbidden(
                &path.child(among),
                "may not specify more than 1 volume type",
            ));
            continue;
        }
        let at = path.child(match source.kind {
            "gcePersistentDisk" => "persistentDisk",
            kind => kind,
        });
        checks::run_at(source.rules, value, &at, None, errors);
        (source.more)(value, &at, place, errors);
        found = Some((source.kind, value, at));
    }
    if found.is_none() {
        errors.push(Error::required(path, "must specify a volume type"));
    }
    found
}

fn partition(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let number = tree::int(source, "partition");
    if !(0..=255).contains(&number) {
        let why = api::inclusive_range(1, 255);
        errors.push(Error::invalid(&path.child("partition"), number, why));
    }
}

fn absolute(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let directory = tree::text(source, "path");
    if !directory.starts_with('/') {
        errors.push(Error::invalid(
            &path.child("path"),
            directory,
            "must be an absolute path",
        ));
    }
}

/// Whether a name of an initiator or target follows one of the three schemes (RFC 3720 §3.2.6.3): `iqn`, `eui`, `naa`.
/// `None`: it is of none of them.
fn storage_name(name: &str) -> Option<bool> {
    let alphanumeric = |digits: &str, count: usize| {
        let mut digits = digits.chars();
        digits.next().is_some() && digits.as_str().len() == count && digits.all(|c| c.is_ascii_alphanumeric())
    };
    if let Some(rest) = name.strip_prefix("iqn") {
        let digits = |text: Option<&str>| text.is_some_and(|text| text.bytes().all(|c| c.is_ascii_digit()));
        let authority =
            |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        let local =
            |text: &str| !text.is_empty() && !text.contains(|c: char| ",;*&$|".contains(c) || c.is_ascii_whitespace());
        let dated = rest.get(..1) == Some(".")
            && digits(rest.get(1..5))
            && rest.get(5..6) == Some("-")
            && digits(rest.get(6..8))
            && rest.get(8..9) == Some(".");
        let named = rest.get(9..).and_then(|rest| rest.split_once(':'));
        Some(dated && named.is_some_and(|(owner, chosen)| authority(owner) && local(chosen)))
    } else if let Some(rest) = name.strip_prefix("eui") {
        Some(alphanumeric(rest, 16))
    } else {
        name.strip_prefix("naa").map(|rest| alphanumeric(rest, 32))
    }
}

fn iscsi(source: &Value, path: &Path, place: Place<'_>, errors: &mut Errors) {
    let portal = tree::text(source, "targetPortal");
    let initiator = tree::get(source, "initiatorName").and_then(Value::as_str);
    let too_long = |name: &str| initiator.is_some() && name.len() + 1 + portal.len() > 64;
    let why = "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if \
               iscsi.initiatorName is specified.";
    let unknown_scheme = match place {
        Place::Pod(_) => "must be valid format starting with iqn, eui, or naa",
        Place::Volume(name) => {
            if too_long(name) {
                errors.push(Error::invalid(&path.child("targetportal"), portal, why));
            }
            "must be valid format"
        }
    };
    let formed = |at: &str, name: &str, errors: &mut Errors| match storage_name(name) {
        Some(true) => {}
        Some(false) => errors.push(Error::invalid(&path.child(at), name, "must be valid format")),
        None => errors.push(Error::invalid(&path.child(at), name, unknown_scheme)),
    };
    match tree::text(source, "iqn") {
        "" => errors.push(Error::required(&path.child("iqn"), "")),
        name => formed("iqn", name, errors),
    }
    checks::run_at(&[("lun", Rule::Between(0, 255))], source, path, None, errors);
    let authenticated = tree::flag(source, "chapAuthDiscovery") || tree::flag(source, "chapAuthSession");
    if authenticated && tree::get(source, "secretRef").is_none() {
        errors.push(Error::required(&path.child("secretRef"), ""));
    }
    if let (Place::Volume(_), Some(reference)) = (place, tree::get(source, "secretRef")) {
        let rows: &[Check] = &[("name", Rule::Required(""))];
        checks::run_at(rows, reference, &path.child("secretRef"), None, errors);
    }
    if let Some(name) = initiator {
        formed("initiatorname", name, errors);
    }
    if let Place::Pod(name) = place
        && too_long(name)
    {
        // Of the volume, not of its source.
        let volume = path.as_str().rsplit_once('.').map_or("", |(volume, _)| volume);
        errors.push(Error::invalid(&Path::new(volume).child("name"), name, why));
    }
}

fn endpoints(source: &Value, path: &Path, place: Place<'_>, errors: &mut Errors) {
    let namespace = tree::get(source, "endpointsNamespace").and_then(Value::as_str);
    let (Place::Volume(_), Some(namespace)) = (place, namespace) else {
        return;
    };
    let path = path.child("endpointsNamespace");
    if namespace.is_empty() {
        let why = "if the endpointnamespace is set, it must be a valid namespace name";
        errors.push(Error::invalid(&path, namespace, why));
    }
    checks::named(&path, namespace, api::dns1123_label, errors);
}

fn flocker(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let name = tree::text(source, "datasetName");
    match (name.is_empty(), tree::text(source, "datasetUUID").is_empty()) {
        (true, true) => errors.push(Error::required(path, "one of datasetName and datasetUUID is required")),
        (false, false) => errors.push(Error::invalid(
            path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        )),
        _ => {}
    }
    if name.contains('/') {
        errors.push(Error::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
}

fn secret(source: &Value, path: &Path, place: Place<'_>, errors: &mut Errors) {
    let Some(reference) = tree::get(source, "secretRef") else {
        return;
    };
    let rows: &[Check] = match place {
        Place::Pod(_) => &[("name", Rule::Required(""))],
        Place::Volume(_) => &[("name", Rule::Required("")), ("namespace", Rule::Required(""))],
    };
    checks::run_at(rows, reference, &path.child("secretRef"), None, errors);
}

fn quobyte(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let registry = tree::text(source, "registry");
    if !registry.is_empty() && tree::text(source, "tenant").len() >= 65 {
        let why = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(Error::required(&path.child("tenant"), why));
    } else if !registry.is_empty() {
        for _ in registry.split(',').filter(|pair| !is_host_port(pair)) {
            errors.push(Error::invalid(&path.child("registry"), registry, PAIRS));
        }
    }
    checks::run_at(&[("volume", Rule::Required(""))], source, path, None, errors);
}

/// What Go's `net.SplitHostPort` takes apart: `host:port`, or `[host with colons]:port`.
fn is_host_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else {
        return false;
    };
    let bare = match host.strip_prefix('[') {
        Some(inner) => match inner.strip_suffix(']') {
            Some(inner) => inner,
            None => return false,
        },
        None if host.contains(':') => return false,
        None => host,
    };
    !bare.contains(['[', ']']) && !port.contains(['[', ']'])
}

fn fibre_channel(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let targets = tree::items(source, "targetWWNs");
    let at = path.child("targetWWNs");
    match (targets.is_empty(), tree::items(source, "wwids").is_empty()) {
        (true, true) => errors.push(Error::required(
            &at,
            "must specify either targetWWNs or wwids, but not both",
        )),
        (false, false) => errors.push(Error::invalid(
            &at,
            targets.to_vec(),
            "targetWWNs and wwids can not be specified simultaneously",
        )),
        _ => {}
    }
    if !targets.is_empty() {
        if tree::opt_int(source, "lun").is_none() {
            let why = "lun is required if targetWWNs is specified";
            errors.push(Error::required(&path.child("lun"), why));
        }
        checks::run_at(&[("lun", Rule::Between(0, 255))], source, path, None, errors);
    }
}

fn options(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    for key in tree::map(source, "options")
        .into_iter()
        .flat_map(|options| options.keys())
    {
        let namespace = key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace);
        let namespace = format!(".{}", namespace.to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let why = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(Error::invalid(&path.child("options").key(key), key.as_str(), why));
        }
    }
}

fn disk_address(source: &Value, path: &Path, _: Place<'_>, errors: &mut Errors) {
    let address = tree::text(source, "diskURI");
    let (prefix, example) = match tree::text(source, "kind") {
        "" => return,
        "Managed" => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        _ => (
            "https://",
            "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd",
        ),
    };
    if !address.starts_with(prefix) {
        errors.push(Error::not_supported(&path.child("diskURI"), address, &[example]));
    }
}

/// A CSI driver's name.
fn driver(source: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("driver");
    let name = tree::text(source, "driver");
    if name.is_empty() {
        errors.push(Error::required(&path, ""));
        return;
    }
    if name.len() > 63 {
        errors.push(Error::too_long(&path, 63));
    }
    let messages = api::dns1123_subdomain(&name.to_lowercase());
    errors.extend(messages.into_iter().map(|message| Error::invalid(&path, name, message)));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(spec: Value, place: Place<'_>) -> Vec<String> {
        let mut errors = Errors::new();
        check(&spec, &Path::new("spec"), place, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_source_says_what_it_lacks() {
        let volume = Place::Volume("data");
        let pod = Place::Pod("data");
        let iqn = "iqn.2001-04.com.example:storage";
        let cases: &[(Place<'_>, Value, &[&str])] = &[
            (volume, json!({}), &["spec: Required value: must specify a volume type"]),
            (
                volume,
                json!({"nfs": {"server": "s", "path": "/p"}, "cephfs": {}}),
                &["spec.cephFS: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                pod,
                json!({"gcePersistentDisk": {"partition": 256}}),
                &[
                    "spec.persistentDisk.pdName: Required value",
                    "spec.persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive",
                ],
            ),
            (
                pod,
                json!({"nfs": {"server": "s", "path": "p"}}),
                &[r#"spec.nfs.path: Invalid value: "p": must be an absolute path"#],
            ),
            (pod, json!({"iscsi": {"targetPortal": "p", "iqn": iqn, "lun": 1}}), &[]),
            (
                pod,
                json!({"iscsi": {"targetPortal": "p", "iqn": "x", "lun": 300, "chapAuthSession": true}}),
                &[
                    r#"spec.iscsi.iqn: Invalid value: "x": must be valid format starting with iqn, eui, or naa"#,
                    "spec.iscsi.lun: Invalid value: 300: must be between 0 and 255, inclusive",
                    "spec.iscsi.secretRef: Required value",
                ],
            ),
            (
                volume,
                json!({"iscsi": {"targetPortal": "p", "iqn": "iqn.2001-4.x:y", "initiatorName": "eui.1"}}),
                &[
                    r#"spec.iscsi.iqn: Invalid value: "iqn.2001-4.x:y": must be valid format"#,
                    r#"spec.iscsi.initiatorname: Invalid value: "eui.1": must be valid format"#,
                ],
            ),
            (
                volume,
                json!({"glusterfs": {"endpoints": "e", "path": "p", "endpointsNamespace": "A"}}),
                &[
                    "spec.glusterfs.endpointsNamespace: Invalid value: \"A\": a lowercase RFC 1123 label must consist of \
                   lower case alphanumeric characters or '-', and must start and end with an alphanumeric character \
                   (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                pod,
                json!({"flocker": {}}),
                &["spec.flocker: Required value: one of datasetName and datasetUUID is required"],
            ),
            (
                volume,
                json!({"cinder": {"volumeID": "v", "secretRef": {"name": "n"}}}),
                &["spec.cinder.secretRef.namespace: Required value"],
            ),
            (
                pod,
                json!({"cinder": {"volumeID": "v", "secretRef": {"name": "n"}}}),
                &[],
            ),
            (
                pod,
                json!({"quobyte": {"registry": "host", "volume": "v"}}),
                &[
                    r#"spec.quobyte.registry: Invalid value: "host": must be a host:port pair or multiple pairs separated by commas"#,
                ],
            ),
            (
                pod,
                json!({"quobyte": {"registry": "host:1,[::1]:2", "volume": "v"}}),
                &[],
            ),
            (
                pod,
                json!({"fc": {"targetWWNs": ["a"]}}),
                &["spec.fc.lun: Required value: lun is required if targetWWNs is specified"],
            ),
            (
                pod,
                json!({"flexVolume": {"driver": "d", "options": {"x.K8s.io/a": "b"}}}),
                &[
                    "spec.flexVolume.options[x.K8s.io/a]: Invalid value: \"x.K8s.io/a\": kubernetes.io and k8s.io namespaces are reserved",
                ],
            ),
            (
                pod,
                json!({"azureDisk": {"diskName": "d", "diskURI": "u", "kind": "Shared"}}),
                &["spec.azureDisk.diskURI: Unsupported value: \"u\": supported values: \
                   \"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd\""],
            ),
            (
                volume,
                json!({"csi": {"driver": "Driver.example.com", "nodePublishSecretRef": {"name": "s"}}}),
                &[
                    "spec.csi.volumeHandle: Required value",
                    "spec.csi.nodePublishSecretRef.namespace: Required value",
                ],
            ),
            (pod, json!({"csi": {}}), &["spec.csi.driver: Required value"]),
            (
                pod,
                json!({"local": {"path": "/p"}}),
                &["spec: Required value: must specify a volume type"],
            ),
        ];
        for (place, spec, expected) in cases {
            assert_eq!(told(spec.clone(), *place), *expected, "{spec}");
        }
    }

    #[test]
    fn names_of_storage() {
        for (name, expected) in [
            ("iqn.2001-04.com.example:storage:disk", Some(true)),
            ("iqn.2001-04.com.example", Some(false)),
            ("iqn.2001-04.:x", Some(false)),
            ("iqn.2001-04.a:b c", Some(false)),
            ("eui.02004567A425678D", Some(true)),
            ("eui.0200", Some(false)),
            ("naa.62004567BA64678D0123456789ABCDEF", Some(true)),
            ("iqné", Some(false)),
            ("other", None),
        ] {
            assert_eq!(storage_name(name), expected, "{name}");
        }
    }
}
