//! Encryption at rest as a user sets it up: on a real server, with the real kubectl, in the embedded store and in etcd.
//! The raw store is looked into for what must not be there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sampan_store::testing::EtcdProcess;

use crate::alone::{Server, sampan};
use crate::needles::{base64, canary, canary64, decoded};
use crate::plugin::Plugin;

/// One provider with a key of these bytes.
fn provider(kind: &str, name: &str, key: u8) -> String {
    format!("{kind}: {{keys: [{{name: {name}, secret: '{}'}}]}}", base64(&[key; 32]))
}

fn configuration(providers: &[&str]) -> String {
    let providers: String = providers.iter().map(|provider| format!("  - {provider}\n")).collect();
    format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  providers:\n{providers}"
    )
}

const IDENTITY: &str = "identity: {}";

struct Configured {
    path: PathBuf,
}

impl Configured {
    fn new(dir: &Path, providers: &[&str]) -> Self {
        let configured = Configured {
            path: dir.join("encryption.yaml"),
        };
        configured.write(providers);
        configured
    }
    /// Whole or not at all, as an editor or a mounted Secret does it.
    fn write(&self, providers: &[&str]) {
        let fresh = self.path.with_extension("new");
        fs::write(&fresh, configuration(providers)).unwrap();
        fs::rename(fresh, &self.path).unwrap();
    }
    fn flag(&self) -> String {
        format!("--encryption-provider-config={}", self.path.display())
    }
}

const FOLLOWED: &str = "--encryption-provider-config-automatic-reload";

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle.as_bytes())
}

/// What is on the disk of a stopped server, as far as Secrets go: by name the beginning of what is stored.
fn stored(dir: &Path) -> Vec<(String, String)> {
    // A copy: opening a store may write to it.
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(dir.join("store")).unwrap().flatten() {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        use sampan_store::Store;
        let store =
            sampan_store::embedded::Embedded::open(copy.path(), sampan_store::embedded::Options::default()).unwrap();
        let page = store
            .range("/registry/secrets/", "/registry/secrets0", 0)
            .await
            .unwrap();
        store.close();
        let head = |value: &[u8]| String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
        page.entries
            .iter()
            .map(|entry| (entry.key.to_string(), head(&entry.value)))
            .collect()
    })
}

/// `kubectl get secrets -A -o json | kubectl replace -f -`
fn rewrite(server: &Server) {
    let all = server.kubectl("get secrets -A -o json").unwrap();
    let file = server.dir.join("all.json");
    fs::write(&file, all).unwrap();
    server.kubectl(&format!("replace -f {}", file.display())).unwrap();
    fs::remove_file(file).unwrap();
}

fn value(server: &Server, name: &str) -> Result<String, String> {
    server.kubectl(&format!("get secret {name} -o jsonpath={{.data.k}}"))
}

fn create(server: &Server, name: &str) -> Result<String, String> {
    server.kubectl(&format!(
        "create secret generic {name} --from-literal=k={}",
        canary(name)
    ))
}

#[test]
fn a_key_is_added_everything_rewritten_and_the_old_one_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let one = provider("aesgcm", "one", 1);
    let two = provider("secretbox", "two", 2);
    let data = dir.path().join("data");
    // Before there is any encryption.
    let Some(mut server) = Server::start(&data, "192.0.2.41", &[]) else {
        return;
    };
    create(&server, "before").unwrap();
    server.kill();
    assert!(
        stored(&data)
            .iter()
            .any(|(key, head)| key.ends_with("/before") && head.starts_with('{'))
    );
    assert!(contains(
        &fs::read(data.join("store/store.redb")).unwrap(),
        &canary64("before")
    ));

    let configured = Configured::new(dir.path(), &[&one, IDENTITY]);
    server.arguments.extend([configured.flag(), FOLLOWED.into()]);
    server.run();
    assert_eq!(value(&server, "before").unwrap(), canary64("before"));
    create(&server, "first").unwrap();
    rewrite(&server);
    let counted = |way: &str, prefix: &str| {
        let labels = ["resource=\"secrets\"", "status=\"OK\"", way, prefix];
        server.metric("apiserver_storage_transformation_operations_total", &labels)
    };
    assert!(counted("to_storage", "k8s:enc:aesgcm:v1:") >= 2.0);
    assert!(counted("from_storage", "identity") >= 1.0);
    assert_eq!(server.kubectl("get --raw /readyz/kms-providers").unwrap(), "ok");
    // The file changes while the server runs: another key in front, then alone.
    let watch = server.watch("get secrets");
    let reloads = |server: &Server| {
        server.metric(
            "apiserver_encryption_config_controller_automatic_reloads_total",
            &["success"],
        )
    };
    configured.write(&[&two, &one, IDENTITY]);
    server.wait("the new key", 60, || reloads(&server) >= 1.0);
    create(&server, "second").unwrap();
    rewrite(&server);
    configured.write(&[&two]);
    server.wait("the old key gone", 60, || reloads(&server) >= 2.0);
    for name in ["before", "first", "second"] {
        assert_eq!(value(&server, name).unwrap(), canary64(name), "{name}");
    }
    // The watch went on, and told plain objects.
    let seen = watch.finish();
    assert!(
        seen.contains(&canary64("second")) && !seen.contains("k8s:enc:"),
        "{seen}"
    );
    // A wrong file is refused, and the server goes on.
    fs::write(&configured.path, "kind: nonsense").unwrap();
    let failures = || {
        server.metric(
            "apiserver_encryption_config_controller_automatic_reloads_total",
            &["failure"],
        )
    };
    server.wait("the wrong file noticed", 60, || failures() >= 1.0);
    create(&server, "third").unwrap();
    configured.write(&[&two]);
    // What is deleted has left the store's file when it is compacted, not before: so the file is looked into for what
    // was encrypted from the beginning, and the present for everything.
    server.kill();
    let raw = fs::read(data.join("store/store.redb")).unwrap();
    for name in ["first", "second", "third"] {
        assert!(
            !contains(&raw, &canary(name)) && !contains(&raw, &canary64(name)),
            "{name}"
        );
    }
    let present = stored(&data);
    assert!(present.len() >= 4, "{present:?}");
    for (key, head) in &present {
        assert!(head.starts_with("k8s:enc:secretbox:v1:two:"), "{key}: {head}");
    }
    // Started anew with the new key alone; without it nothing is served as if it were something.
    server.run();
    assert_eq!(value(&server, "before").unwrap(), canary64("before"));
    server.kill();
    fs::write(&configured.path, configuration(&[&one, IDENTITY])).unwrap();
    server.run();
    let why = value(&server, "before").unwrap_err();
    assert!(why.contains("no matching prefix found"), "{why}");
    let why = server.kubectl("get secrets -A").unwrap_err();
    assert!(why.contains("unable to transform key"), "{why}");
    // A configuration that is wrong when it starts keeps it from starting, and the key is not told.
    server.kill();
    let wrong = provider("aesgcm", "one", 1).replace("=='", "'");
    fs::write(&configured.path, configuration(&[&wrong[..wrong.len() - 10]])).unwrap();
    let refused = Command::new(sampan_e2e::binary())
        .args(["server", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .arg(configured.flag())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && !said.contains(&base64(&[1; 32])[..20]),
        "{said}"
    );
}

#[test]
fn backup_restore_move_and_two_servers() {
    let dir = tempfile::tempdir().unwrap();
    let one = provider("aesgcm", "one", 1);
    let two = provider("aescbc", "two", 2);
    let configured = Configured::new(dir.path(), &[&one]);
    let data = dir.path().join("data");
    let Some(mut server) = Server::start(&data, "192.0.2.42", &[&configured.flag()]) else {
        return;
    };
    create(&server, "kept").unwrap();
    let file = dir.path().join("backup");
    let kubeconfig = server.kubeconfig().display().to_string();
    let shown = file.display().to_string();
    sampan(&["backup", &shown, "--kubeconfig", &kubeconfig]).unwrap();
    let raw = fs::read(&file).unwrap();
    assert!(!contains(&raw, &canary("kept")) && !contains(&raw, &canary64("kept")));
    assert!(contains(&raw, "k8s:enc:aesgcm:v1:one:"));
    // Restored it opens with the configuration, and not without.
    let second = dir.path().join("second");
    let target = second.display().to_string();
    sampan(&["restore", &shown, "--data-dir", &target]).unwrap();
    let token = data.join("cluster-token").display().to_string();
    let mut restored = Server::start(
        &second,
        "192.0.2.43",
        &["--cluster-token-file", &token, &configured.flag()],
    )
    .unwrap();
    assert_eq!(value(&restored, "kept").unwrap(), canary64("kept"));
    restored.kill();
    restored.arguments.retain(|argument| *argument != configured.flag());
    restored.run();
    let why = value(&restored, "kept").unwrap_err();
    assert!(
        why.contains("identity transformer tried to read encrypted data"),
        "{why}"
    );
    assert!(restored.kubectl("get secrets").is_err());
    drop(restored);

    // Moved while it serves.
    let Some(etcd) = EtcdProcess::start() else { return };
    let url = etcd.url();
    let said = sampan(&["migrate", "--etcd-servers", &url, "--kubeconfig", &kubeconfig]).unwrap();
    assert!(said.contains("moved "), "{said}");
    assert_eq!(value(&server, "kept").unwrap(), canary64("kept"));
    create(&server, "moved").unwrap();
    let raw = in_etcd(&url);
    for name in ["kept", "moved"] {
        assert!(!raw.contains(&canary(name)) && !raw.contains(&canary64(name)), "{name}");
    }
    assert!(raw.contains("k8s:enc:aesgcm:v1:one:"), "{raw}");
    server.kill();
    server.arguments.extend(["--etcd-servers".into(), url.clone()]);
    server.run();

    // Another server, whose configuration writes with another key and reads both; the first does not know the new key.
    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let other = Configured::new(&elsewhere, &[&two, &one]);
    let third = dir.path().join("third");
    let arguments = ["--etcd-servers", &url, "--cluster-token-file", &token, &other.flag()];
    let mut peer = Server::start(&third, "192.0.2.44", &arguments).unwrap();
    assert_eq!(value(&peer, "kept").unwrap(), canary64("kept"));
    create(&peer, "newer").unwrap();
    assert_eq!(value(&peer, "newer").unwrap(), canary64("newer"));
    server.wait("the reason", 30, || {
        value(&server, "newer").is_err_and(|why| why.contains("no matching prefix found"))
    });
    // What it can read it serves; what it cannot read it does not write over.
    assert_eq!(value(&server, "moved").unwrap(), canary64("moved"));
    assert!(
        server
            .kubectl("patch secret newer -p {\"data\":{\"k\":\"eA==\"}}")
            .is_err()
    );
    assert!(server.kubectl("get secrets").is_err());
    // Given the key, it reads.
    server.kill();
    configured.write(&[&one, &two]);
    server.run();
    for name in ["kept", "moved", "newer"] {
        assert_eq!(value(&server, name).unwrap(), canary64(name));
        assert_eq!(value(&peer, name).unwrap(), canary64(name));
    }
    // And in the other direction: what the first writes the second reads at once, also by its watch.
    create(&server, "crossing").unwrap();
    peer.wait("the other's Secret", 30, || {
        value(&peer, "crossing").is_ok_and(|value| value == canary64("crossing"))
    });
    peer.kill();
}

/// Everything below the cluster's Secrets as etcd has it.
fn in_etcd(url: &str) -> String {
    let range = format!(
        "{{\"key\": \"{}\", \"range_end\": \"{}\"}}",
        base64(b"/registry/secrets/"),
        base64(b"/registry/secrets0")
    );
    let answer = Command::new("curl")
        .args(["-sSf", &format!("{url}/v3/kv/range"), "-d", &range])
        .output();
    let answer = answer.expect("curl is there");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer: serde_json::Value = serde_json::from_slice(&answer.stdout).unwrap();
    let values = answer["kvs"].as_array().into_iter().flatten();
    let values: Vec<_> = values.map(|entry| decoded(entry["value"].as_str().unwrap())).collect();
    assert!(!values.is_empty(), "{answer}");
    values
        .iter()
        .map(|value| String::from_utf8_lossy(value))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_plugin_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let mut plugin = Plugin::start(dir.path());
    let kms = format!(
        "kms: {{apiVersion: v2, name: vault, endpoint: 'unix://{}', timeout: 2s}}",
        plugin.socket.display()
    );
    let configured = Configured::new(dir.path(), &[&kms, IDENTITY]);
    let data = dir.path().join("data");
    let Some(mut server) = Server::start(&data, "192.0.2.45", &[&configured.flag()]) else {
        return;
    };
    create(&server, "first").unwrap();
    assert_eq!(server.kubectl("get --raw /readyz/kms-provider-0").unwrap(), "ok");
    assert!(
        server.kubectl("get --raw /livez/kms-provider-0").is_err(),
        "a restart would not help"
    );
    assert_eq!(plugin.calls("Encrypt"), 1, "one seed is enough");
    assert!(
        server.metric(
            "apiserver_envelope_encryption_key_id_hash_total",
            &["vault", "to_storage"]
        ) >= 1.0
    );
    assert!(
        server.metric(
            "apiserver_envelope_encryption_kms_operations_latency_seconds_count",
            &["Encrypt", "\"OK\""]
        ) >= 1.0
    );

    // It dies: reading and, for a while, writing go on; the server says that it is not ready, and lives.
    plugin.kill();
    create(&server, "meanwhile").unwrap();
    assert_eq!(value(&server, "first").unwrap(), canary64("first"));
    // A server that starts without it reads what is plain, and refuses to write Secrets in the clear.
    server.kill();
    server.run_unready();
    server.wait("not ready", 60, || {
        server.kubectl("get --raw /readyz/kms-provider-0").is_err()
    });
    server.kubectl("get --raw /livez").unwrap();
    server.kubectl("create configmap plain --from-literal=a=b").unwrap();
    let why = create(&server, "never").unwrap_err();
    assert!(!why.contains(&canary("never")) && why.contains("rpc error"), "{why}");
    let why = value(&server, "first").unwrap_err();
    assert!(why.contains("failed to decrypt DEK"), "{why}");
    // It comes back: the server asks again within ten seconds.
    plugin.run();
    server.wait("ready again", 60, || server.kubectl("get --raw /readyz").is_ok());
    server.wait("readable again", 30, || {
        value(&server, "first").is_ok_and(|value| value == canary64("first"))
    });
    assert_eq!(value(&server, "meanwhile").unwrap(), canary64("meanwhile"));
    create(&server, "again").unwrap();

    // Its key changes: noticed within a minute, and what is rewritten is under the new one.
    plugin.control("key-2", "ok", 0);
    let hashes = || {
        let text = server.kubectl("get --raw /metrics").unwrap();
        let name = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds{";
        text.lines().filter(|line| line.starts_with(name)).count()
    };
    server.wait("the new key", 120, || hashes() == 2);
    create(&server, "newer").unwrap();
    rewrite(&server);
    server.kill();
    let raw = fs::read(data.join("store/store.redb")).unwrap();
    for name in ["first", "meanwhile", "again", "newer", "never"] {
        assert!(
            !contains(&raw, &canary(name)) && !contains(&raw, &canary64(name)),
            "{name}"
        );
    }
    let present = stored(&data);
    assert!(
        !present.is_empty()
            && present
                .iter()
                .all(|(_, head)| head.starts_with("k8s:enc:kms:v2:vault:")),
        "{present:?}"
    );
    // The old key is gone for good. Nothing needs it.
    plugin.control("key-2", "only", 0);
    server.run();
    for name in ["first", "meanwhile", "again", "newer"] {
        assert_eq!(value(&server, name).unwrap(), canary64(name), "{name}");
    }
    // Slow: a request waits no longer than the timeout of the configuration, and others do not wait at all.
    plugin.control("key-2", "ok", 30_000);
    server.kill();
    server.run_unready();
    let begun = Instant::now();
    assert!(create(&server, "slow").is_err());
    server.kubectl("get configmap plain").unwrap();
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    // Answers that lie.
    for (key, mode, why) in [
        ("", "ok", "keyID is empty"),
        (&*"k".repeat(2000), "ok", "exceeds the max size"),
        ("key-3", "ill", "got unexpected healthz status"),
        ("key-3", "old", "expected KMSv2 API version"),
        ("key-3", "other-key", "rotate DEK"),
        ("key-3", "no-seed", "encrypted DEK source is empty"),
        ("key-3", "bad-annotation", "annotations"),
    ] {
        plugin.control(key, mode, 0);
        server.kill();
        server.run_unready();
        let said = create(&server, "lied").unwrap_err();
        assert!(said.contains(why), "{mode}: {said}");
    }
    plugin.control("key-2", "ok", 0);
    let server_log = fs::read_to_string(data.join("log")).unwrap();
    assert!(!server_log.contains("CANARY") && !server_log.contains("panicked"));
}
