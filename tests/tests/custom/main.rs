//! Custom resources as people use them: a realistic definition, and everything kubectl does with it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use sampan_e2e::{Cluster, Session, kubectls, output, ready};
use serde_json::{Value, json};

const DEFINITION: &str = include_str!("lamps.yaml");
const CRD: &str = "lamps.lab.example.com";

/// A file in the cluster's directory.
fn file(session: &Session<'_>, name: &str, text: &str) -> String {
    let path = session.cluster.dir.path().join(name);
    std::fs::write(&path, text).expect("write");
    path.to_string_lossy().into_owned()
}

fn lamp(color: &str, more: &str) -> String {
    format!(
        "apiVersion: lab.example.com/v1\nkind: Lamp\nmetadata: {{name: desk}}\nspec:\n  color: {color}\n  bulbs: [{{name: one}}, {{name: two, port: http}}]\n  extra: {{any: {{thing: [1, 2]}}}}\n{more}"
    )
}

fn json_of(session: &Session<'_>, words: &str) -> Value {
    serde_json::from_str(&session.words(words)).expect("JSON")
}

/// A definition that is ready to be used.
fn define(session: &Session<'_>) {
    let path = file(session, "lamps.yaml", DEFINITION);
    session.run(&["apply", "-f", &path]);
    session.words(&format!("wait --for=condition=Established --timeout=10s crd/{CRD}"));
}

fn undefine(session: &Session<'_>) {
    session.words(&format!("delete crd {CRD} --timeout=60s"));
    let text = session.fails(&["get", "--raw", "/apis/lab.example.com/v1/lamps"]);
    session.expect("the resource is gone", text.contains("NotFound"), &text);
}

#[test]
fn custom_resources_with_every_kubectl() {
    if !ready("custom_resources_with_every_kubectl") {
        return;
    }
    let mut cluster = Cluster::prepare("custom", &["--disable=node,dns,proxy"]);
    cluster.start_server();
    cluster.wait("the default service account", 30, |cluster| {
        cluster.try_kubectl("get serviceaccount default").is_ok()
    });
    for kubectl in kubectls() {
        let session = Session::new(&cluster, &kubectl);
        define(&session);
        published(&session);
        explained(&session);
        objects(&session);
        tables(&session);
        views(&session);
        rules(&session);
        applied(&session);
        server_side(&session);
        waited(&session);
        ratcheted(&session);
        watched(&session);
        undefine(&session);
        // A new definition of the same name starts with nothing.
        define(&session);
        let found = session.words("get lamps -A -o name");
        session.expect("nothing is left", found.is_empty(), &found);
        undefine(&session);
    }
}

fn published(session: &Session<'_>) {
    let start = Instant::now();
    let mut found = [false; 3];
    while found != [true; 3] && start.elapsed() < Duration::from_secs(10) {
        found = [
            session
                .words("get --raw /openapi/v2")
                .contains("com.example.lab.v1beta1.Lamp"),
            session
                .words("get --raw /openapi/v3")
                .contains("apis/lab.example.com/v1beta1"),
            session
                .words("get --raw /openapi/v3/apis/lab.example.com/v1")
                .contains("What it is screwed into."),
        ];
    }
    eprintln!("  published after {:?}", start.elapsed());
    session.expect("OpenAPI", found == [true; 3], &format!("{found:?}"));
    let listed = session.words("api-resources --categories=lights --no-headers");
    session.expect(
        "api-resources",
        listed
            .split_whitespace()
            .eq(["lamps", "lp", "lab.example.com/v1", "true", "Lamp"]),
        &listed,
    );
}

fn explained(session: &Session<'_>) {
    let text = session.words("explain lamp.spec.bulbs");
    session.expect(
        "explain",
        text.contains("What it is screwed into.") && text.contains("[]Object"),
        &text,
    );
    let text = session.words("explain lp --recursive");
    session.expect(
        "explain --recursive",
        [
            "Lamp is something that shines.",
            "bulbs",
            "socket",
            "ownerReferences",
            "conditions",
        ]
        .iter()
        .all(|word| text.contains(word)),
        &text,
    );
    let text = session.words("explain lamps.spec --api-version=lab.example.com/v1beta1");
    session.expect(
        "explain --api-version",
        text.contains("hue") && !text.contains("watts"),
        &text,
    );
}

/// Unknown fields, pruning, defaults, another version.
fn objects(session: &Session<'_>) {
    let path = file(session, "desk.yaml", &lamp("red", "  unknown: {a: 1}\n"));
    let text = session.fails(&["create", "-f", &path]);
    session.expect("strict", text.contains("unknown field \"spec.unknown\""), &text);
    session.run(&["create", "--validate=ignore", "-f", &path]);
    let made = json_of(session, "get lp desk -o json");
    let spec = json!({"color": "red", "watts": 40, "minWatts": 5, "replicas": 1, "extra": {"any": {"thing": [1, 2]}},
        "bulbs": [{"name": "one", "socket": "E27"}, {"name": "two", "socket": "E27", "port": "http"}]});
    session.expect("pruned and with defaults", made["spec"] == spec, &made.to_string());
    let old = output(session.cluster.kubectl_command(session.kubectl).args([
        "get",
        "lamps.v1beta1.lab.example.com",
        "desk",
        "-o",
        "json",
    ]));
    let shown: Value = serde_json::from_slice(&old.stdout).expect("JSON");
    session.expect(
        "the other version",
        shown["apiVersion"] == "lab.example.com/v1beta1" && shown["spec"] == json!({"color": "red"}),
        &shown.to_string(),
    );
    let warned = String::from_utf8_lossy(&old.stderr);
    session.expect(
        "deprecation",
        warned.contains("lab.example.com/v1beta1 Lamp is old"),
        &warned,
    );
}

fn tables(session: &Session<'_>) {
    let cells = |words: &str| {
        let text = session.words(words);
        text.lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let found = [cells("get lamps"), cells("get lights -o wide")];
    let wanted = [
        vec!["NAME", "COLOR", "READY", "AGE"],
        vec!["NAME", "COLOR", "WATTS", "READY", "AGE"],
    ];
    session.expect(
        "columns",
        found[0] == wanted[0] && found[1] == wanted[1],
        &format!("{found:?}"),
    );
    let selected = session.words("get lamps --field-selector spec.color=red,spec.watts=40 -o name");
    session.expect(
        "selectable fields",
        selected == "lamp.lab.example.com/desk\n",
        &selected,
    );
    let selected = session.words("get lamps --field-selector spec.color!=red -o name");
    session.expect("selectable fields exclude", selected.is_empty(), &selected);
    let text = session.fails(&["get", "lamps", "--field-selector", "spec.mode=new"]);
    session.expect(
        "other fields",
        text.contains("field label not supported: spec.mode"),
        &text,
    );
}

/// Status and scale.
fn views(session: &Session<'_>) {
    session.words("scale lamp desk --replicas=3 --current-replicas=1");
    let patch = r#"{"spec":{"color":"blue"},"status":{"replicas":2,"selector":"app=desk","conditions":[{"type":"Ready","status":"True"}]}}"#;
    session.run(&[
        "patch",
        "lp",
        "desk",
        "--subresource=status",
        "--type=merge",
        "-p",
        patch,
    ]);
    let made = json_of(session, "get lamp desk -o json --show-managed-fields");
    session.expect(
        "the spec is not for the status to change",
        made["spec"]["color"] == "red" && made["spec"]["replicas"] == 3 && made["metadata"]["generation"] == 2,
        &made.to_string(),
    );
    let owns = |subresource: &str, pointer: &str| {
        made["metadata"]["managedFields"].as_array().is_some_and(|entries| {
            entries
                .iter()
                .any(|entry| entry["subresource"] == subresource && entry.pointer(pointer).is_some())
        })
    };
    session.expect(
        "owners by subresource",
        owns("scale", "/fieldsV1/f:spec/f:replicas") && owns("status", "/fieldsV1/f:status/f:selector"),
        &made["metadata"]["managedFields"].to_string(),
    );
    let scale = json_of(session, "get lamp desk --subresource=scale -o json");
    session.expect(
        "scale",
        scale["spec"]["replicas"] == 3 && scale["status"] == json!({"replicas": 2, "selector": "app=desk"}),
        &scale.to_string(),
    );
}

fn rules(session: &Session<'_>) {
    let cases = [
        (
            r#"{"spec":{"watts":1}}"#,
            "spec.watts: Forbidden: a red lamp has too few watts",
        ),
        (
            r#"{"spec":{"mode":"old"}}"#,
            "spec.mode: Invalid value: \"old\": begins as new",
        ),
        (r#"{"spec":{"mode":"new","serial":"a"}}"#, ""),
        (r#"{"spec":{"mode":"old"}}"#, ""),
        (
            r#"{"spec":{"serial":"b"}}"#,
            "spec.serial: Invalid value: \"b\": a serial is for ever",
        ),
        (r#"{"spec":{"serial":null}}"#, "a serial stays"),
        (r#"{"spec":{"watts":501}}"#, "should be less than or equal to 500"),
        (
            r#"{"spec":{"color":"pink"}}"#,
            "supported values: \"red\", \"green\", \"blue\"",
        ),
        (
            r#"{"spec":{"bulbs":[{"name":"a"},{"name":"a"}]}}"#,
            "spec.bulbs[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (
            r#"{"spec":{"bulbs":[{"name":"a","port":true}]}}"#,
            "must be of type integer,string",
        ),
    ];
    for (patch, wanted) in cases {
        let arguments = ["patch", "lamp", "desk", "--type=merge", "-p", patch];
        if wanted.is_empty() {
            session.run(&arguments);
        } else {
            let text = session.fails(&arguments);
            session.expect(patch, text.contains(wanted), &text);
        }
    }
}

/// Client-side apply and diff.
fn applied(session: &Session<'_>) {
    let path = file(session, "desk.yaml", &lamp("green", "  tags: [a, b]\n"));
    session.run(&["apply", "-f", &path]);
    let path = file(session, "desk.yaml", &lamp("green", ""));
    let difference = output(
        session
            .cluster
            .kubectl_command(session.kubectl)
            .args(["diff", "-f", &path]),
    );
    let shown = String::from_utf8_lossy(&difference.stdout);
    session.expect(
        "diff",
        difference.status.code() == Some(1) && shown.contains("-  tags:"),
        &shown,
    );
    session.run(&["apply", "-f", &path]);
    let made = json_of(session, "get lamp desk -o json");
    session.expect(
        "apply takes out what is no longer stated",
        made["spec"].get("tags").is_none() && made["spec"]["color"] == "green" && made["spec"]["serial"] == "a",
        &made.to_string(),
    );
    // Its patch states the list without the defaults of its items; nothing comes of it.
    session.run(&["apply", "-f", &path]);
    let again = json_of(session, "get lamp desk -o json");
    session.expect(
        "apply again",
        again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"],
        &again.to_string(),
    );
}

/// Server-side apply: conflicts, items of a list by key, the other version.
fn server_side(session: &Session<'_>) {
    let config = |bulbs: &str, color: &str| {
        format!(
            "apiVersion: lab.example.com/v1\nkind: Lamp\nmetadata: {{name: desk}}\nspec: {{color: {color}, bulbs: [{bulbs}]}}\n"
        )
    };
    let apply = |name: &str, text: &str, force: bool| {
        let path = file(session, "side.yaml", text);
        let manager = format!("--field-manager={name}");
        let force = format!("--force-conflicts={force}");
        output(session.cluster.kubectl_command(session.kubectl).args([
            "apply",
            "--server-side",
            &manager,
            &force,
            "-f",
            &path,
        ]))
    };
    let done = apply("one", &config("{name: three, port: 80}", "blue"), false);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    session.expect(
        "a conflict",
        !done.status.success()
            && said.contains("conflict with \"kubectl-client-side-apply\"")
            && said.contains(".spec.color"),
        &said,
    );
    assert!(
        apply("one", &config("{name: three, port: 80}", "blue"), true)
            .status
            .success()
    );
    assert!(apply("one", &config("{name: four}", "blue"), true).status.success());
    let made = json_of(session, "get lamp desk -o json");
    let names: Vec<&str> = made["spec"]["bulbs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|bulb| bulb["name"].as_str())
        .collect();
    session.expect("items by key", names == ["one", "two", "four"], &made.to_string());
    let other = "apiVersion: lab.example.com/v1beta1\nkind: Lamp\nmetadata: {name: desk}\nspec: {color: red}\n";
    let done = apply("two", other, false);
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    session.expect(
        "a conflict with what was applied in another version",
        !done.status.success() && said.contains("conflict with \"one\"") && said.contains(".spec.color"),
        &said,
    );
}

fn waited(session: &Session<'_>) {
    session.words("wait --for=condition=Ready lamp/desk --timeout=20s");
    session.words("wait --for=jsonpath={.spec.color}=blue lamp/desk --timeout=20s");
    let child = spawn(
        session,
        &[
            "wait",
            "--for=jsonpath={.status.replicas}=7",
            "lamp/desk",
            "--timeout=60s",
        ],
    );
    session.run(&[
        "patch",
        "lamp",
        "desk",
        "--subresource=status",
        "--type=merge",
        "-p",
        r#"{"status":{"replicas":7}}"#,
    ]);
    let done = child.wait_with_output().expect("wait");
    session.expect(
        "wait for what comes",
        done.status.success(),
        &String::from_utf8_lossy(&done.stderr),
    );
}

/// A value that was good stays good while it stays what it is.
fn ratcheted(session: &Session<'_>) {
    session.run(&[
        "patch",
        "lamp",
        "desk",
        "--type=merge",
        "-p",
        r#"{"spec":{"tags":["longer-than-six"]}}"#,
    ]);
    let stricter = DEFINITION.replace("items: {type: string}}", "items: {type: string, maxLength: 6}}");
    assert_ne!(stricter, DEFINITION);
    let path = file(session, "lamps.yaml", &stricter);
    session.run(&["apply", "-f", &path]);
    let refused = |tags: &str| {
        let patch = format!(r#"{{"spec":{{"watts":41,"tags":[{tags}]}}}}"#);
        let arguments = [
            "patch",
            "lamp",
            "desk",
            "--type=merge",
            "--dry-run=server",
            "-p",
            &patch,
        ];
        !output(session.cluster.kubectl_command(session.kubectl).args(arguments))
            .status
            .success()
    };
    let start = Instant::now();
    while !refused(r#""another-long-one""#) {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the new schema is not in use"
        );
    }
    session.expect("what stays is not judged", !refused(r#""longer-than-six""#), "");
}

fn spawn(session: &Session<'_>, arguments: &[&str]) -> Child {
    let mut command: Command = session.cluster.kubectl_command(session.kubectl);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().expect("kubectl")
}

/// Lines of a command that goes on.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take().expect("stdout");
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A watch tells of changes; when the definition changes it ends, and the next one is of the new shape.
fn watched(session: &Session<'_>) {
    let mut child = spawn(session, &["get", "lamps", "-w"]);
    let told = lines(&mut child);
    let next = || told.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
    let (header, first) = (next(), next());
    session.expect(
        "watch begins with what is there",
        header.starts_with("NAME") && first.starts_with("desk") && first.contains("blue"),
        &format!("{header}\n{first}"),
    );
    session.run(&[
        "patch",
        "lamp",
        "desk",
        "--type=merge",
        "-p",
        r#"{"spec":{"color":"green"}}"#,
    ]);
    let second = next();
    session.expect("watch", second.contains("green"), &second);
    let other = DEFINITION.replace("{name: Color, type: string", "{name: Tint, type: string");
    assert_ne!(other, DEFINITION);
    let path = file(session, "lamps.yaml", &other);
    session.run(&["apply", "-f", &path]);
    let start = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        assert!(start.elapsed() < Duration::from_secs(30), "the watch goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut child = spawn(session, &["get", "lamps", "-w"]);
    let told = lines(&mut child);
    let header = told.recv_timeout(Duration::from_secs(20)).unwrap_or_default();
    session.expect("the new columns", header.contains("TINT"), &header);
    // Instances go with their definition, and watchers are told.
    undefine(session);
    let start = Instant::now();
    while child.try_wait().expect("wait").is_none() {
        assert!(
            start.elapsed() < Duration::from_secs(30),
            "the watch outlives the definition"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    define(session);
}
