//! Raw HTTP against a cluster, with curl: what a client library would never send, and every byte of the answer.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::Cluster;

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The administrator, by certificate.
    Admin,
    /// Nobody.
    Anonymous,
}

/// What came back.
pub struct Answer {
    pub code: u16,
    pub headers: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
    /// The values of a header, in order.
    pub fn header(&self, name: &str) -> Vec<&str> {
        self.headers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect()
    }
}

/// A client of one cluster, in the node's network.
pub struct Http<'a> {
    cluster: &'a Cluster,
    dir: PathBuf,
    pub who: Who,
    pub origin: String,
}

impl<'a> Http<'a> {
    /// Takes the administrator's certificate out of the kubeconfig.
    pub fn new(cluster: &'a Cluster) -> Self {
        let dir = cluster.dir.path().join("http");
        fs::create_dir_all(&dir).expect("a directory");
        let kubeconfig = fs::read_to_string(cluster.kubeconfig()).expect("a kubeconfig");
        for (key, file) in [
            ("certificate-authority-data", "ca.pem"),
            ("client-certificate-data", "cert.pem"),
            ("client-key-data", "key.pem"),
        ] {
            let data = kubeconfig
                .lines()
                .find_map(|line| line.trim().strip_prefix(&format!("{key}: ")))
                .expect(key);
            let mut decode = Command::new("base64")
                .arg("-d")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("base64");
            let mut input = decode.stdin.take().expect("stdin");
            input.write_all(data.as_bytes()).expect("data");
            drop(input);
            let output = decode.wait_with_output().expect("base64 ends");
            fs::write(dir.join(file), output.stdout).expect("write");
        }
        Http {
            cluster,
            dir,
            who: Who::Admin,
            origin: "https://127.0.0.1:6443".to_owned(),
        }
    }

    /// The same cluster without a certificate.
    pub fn anonymous(cluster: &'a Cluster) -> Self {
        let mut http = Self::new(cluster);
        http.who = Who::Anonymous;
        http
    }

    /// One request. Headers are given as `Name: value`; a body without a Content-Type is JSON.
    pub fn send(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let answer = self.dir.join("answer");
        let answer_headers = self.dir.join("answer-headers");
        // What an earlier request left must not be taken for this one's.
        for path in [&answer, &answer_headers] {
            fs::write(path, "").expect("write");
        }
        let mut command = self.cluster.lab.on_node("curl");
        command.args(["-sS", "--globoff", "--path-as-is", "--max-time", "20", "-X", method]);
        command.args(["-w", "%{http_code}"]);
        command.arg("-o").arg(&answer).arg("-D").arg(&answer_headers);
        command.arg("--cacert").arg(self.dir.join("ca.pem"));
        if self.who == Who::Admin {
            command.arg("--cert").arg(self.dir.join("cert.pem"));
            command.arg("--key").arg(self.dir.join("key.pem"));
        }
        let typed = headers
            .iter()
            .any(|header| header.to_ascii_lowercase().starts_with("content-type"));
        if !typed {
            command.args(["-H", "Content-Type: application/json"]);
        }
        for header in headers {
            command.args(["-H", header]);
        }
        // curl asks whether it may go on with large bodies; that is not what is tested here.
        command.args(["-H", "Expect:"]);
        if !body.is_empty() {
            let path = self.dir.join("request");
            fs::write(&path, body).expect("write");
            command.arg("--data-binary").arg(format!("@{}", path.display()));
        }
        command.arg(format!("{}{path}", self.origin));
        // Where the answer comes before all of the body was taken, HTTP/2 says so with a reset that older curls take
        // for a failure now and then; they are asked again.
        let mut output = crate::output(&mut command);
        for _ in 0..5 {
            if output.status.code() != Some(92) {
                break;
            }
            output = crate::output(&mut command);
        }
        let code = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap_or(0);
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        let mut body = read(&answer);
        if code == 0 {
            body = String::from_utf8_lossy(&output.stderr).into_owned();
        }
        Answer {
            code,
            headers: read(&answer_headers),
            body,
        }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[], body.to_string().as_bytes())
    }
    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[], body.to_string().as_bytes())
    }
    pub fn delete(&self, path: &str, body: &Value) -> Answer {
        self.send("DELETE", path, &[], body.to_string().as_bytes())
    }
    /// A patch of the type `application/{kind}`.
    pub fn patch(&self, kind: &str, path: &str, body: &str) -> Answer {
        let header = format!("Content-Type: application/{kind}");
        self.send("PATCH", path, &[&header], body.as_bytes())
    }
}

/// Collects what differs from what was expected, so that one run shows everything.
#[derive(Default)]
pub struct Findings(Vec<String>);

impl Findings {
    pub fn check(&mut self, what: &str, holds: bool, found: impl std::fmt::Display) {
        if !holds {
            self.0.push(format!("{what}: {found}"));
        }
    }

    /// The answer is a Status with this code, reason and exact message.
    pub fn refused(&mut self, what: &str, answer: &Answer, code: u16, reason: &str, message: &str) {
        self.refusal(what, answer, code, reason, message, |found| found == message);
    }

    /// The answer is a Status with this code and reason, and its message contains this.
    pub fn refused_with(&mut self, what: &str, answer: &Answer, code: u16, reason: &str, part: &str) {
        self.refusal(what, answer, code, reason, part, |found| found.contains(part));
    }

    fn refusal(
        &mut self,
        what: &str,
        answer: &Answer,
        code: u16,
        reason: &str,
        message: &str,
        matches: impl Fn(&str) -> bool,
    ) {
        let status = answer.json();
        let right = answer.code == code
            && status["kind"] == "Status"
            && status["status"] == "Failure"
            && status["code"] == code
            && status["reason"].as_str().unwrap_or_default() == reason
            && status["message"].as_str().is_some_and(matches);
        let mut body = answer.body.clone();
        body.truncate(body.floor_char_boundary(700));
        self.check(
            what,
            right,
            format!(
                "\n   expected {code} {reason} {message}\n   found    {} {body}",
                answer.code
            ),
        );
    }

    /// The Status has exactly these causes: reason, field.
    pub fn causes(&mut self, what: &str, answer: &Answer, expected: &[(&str, &str)]) {
        let status = answer.json();
        let causes: Vec<(String, String)> = status["details"]["causes"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|cause| {
                let text = |key: &str| cause[key].as_str().unwrap_or_default().to_owned();
                (text("reason"), text("field"))
            })
            .collect();
        let same = causes.len() == expected.len()
            && causes
                .iter()
                .zip(expected)
                .all(|(found, (reason, field))| found.0 == *reason && found.1 == *field);
        self.check(what, same, format!("causes {causes:?}, expected {expected:?}"));
    }

    pub fn accepted(&mut self, what: &str, answer: &Answer, code: u16) {
        self.check(what, answer.code == code, format!("{} {}", answer.code, answer.body));
    }

    /// Panics with everything that was found.
    pub fn none(self) {
        assert!(
            self.0.is_empty(),
            "{} findings:\n- {}",
            self.0.len(),
            self.0.join("\n- ")
        );
    }
}
