//! `sampan cert`: what certificates there are, their renewal, and the replacement of what issues them.
//!
//! A running server is asked over its API, since it holds what is to be changed and tells everybody who must know. What can be
//! done to a stopped one is done in its data directory, under its store's lock; what depends on knowing who would be cut off
//! needs the server.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;
use sampan_pki::inventory::{self, Found};
use sampan_pki::keys::{Rotating, Step};
use sampan_store::embedded::{Embedded, Options as StoreOptions};
use serde_json::{Value, json};

use crate::cli::{self, CertCommand, Output, Rotate};
use crate::keyring::{self, Place};
use crate::print;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// How often a server is asked whether everybody has followed.
const ASK: Duration = Duration::from_millis(500);

/// The outcome tells the exit code: false where `check` has found something.
pub async fn run(command: cli::Cert) -> Result<bool> {
    let target = Target {
        kubeconfig: command
            .kubeconfig
            .unwrap_or_else(|| command.data_dir.join("admin.kubeconfig")),
        data_dir: command.data_dir,
    };
    match command.command {
        CertCommand::List { output } => {
            show(&target.found()?, output)?;
        }
        CertCommand::Check { within, output } => {
            let limit = Timestamp::now() + within.unwrap_or(SignedDuration::ZERO);
            let mut found = target.found()?;
            if found.is_empty() {
                return Err(format!("there are no certificates in {}", target.data_dir.join("pki").display()).into());
            }
            found.retain(|one| one.not_after < limit.as_second());
            if found.is_empty() {
                if output == Output::Json {
                    println!("[]");
                }
                eprintln!("No certificate expires before {}.", day(limit.as_second()));
            } else {
                show(&found, output)?;
                return Ok(false);
            }
        }
        CertCommand::Renew { names, all } => target.renew(names, all).await?,
        CertCommand::Status { output } => {
            let status = target.status().await?;
            match output {
                Output::Json => println!("{status}"),
                Output::Table => print!("{}", told(&status)),
            }
        }
        CertCommand::RotateCa(rotate) => target.rotate(Rotating::Authorities, rotate).await?,
        CertCommand::RotateServiceAccountKey(rotate) => target.rotate(Rotating::AccountKey, rotate).await?,
    }
    Ok(true)
}

fn day(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

fn show(found: &[Found], output: Output) -> Result<()> {
    match output {
        Output::Json => {
            let with_times = |one: &Found| -> Result<Value> {
                let mut value = serde_json::to_value(one)?;
                for key in ["notBefore", "notAfter", "renewal"] {
                    if let Some(seconds) = value[key].as_i64() {
                        value[key] = day(seconds).into();
                    }
                }
                Ok(value)
            };
            let all: Vec<Value> = found.iter().map(with_times).collect::<Result<_>>()?;
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Output::Table => {
            let now = Timestamp::now().as_second();
            let mut rows = vec![
                ["NAME", "SUBJECT", "ISSUER", "EXPIRES", "LEFT", "ALSO VALID FOR"]
                    .map(str::to_owned)
                    .to_vec(),
            ];
            rows.extend(found.iter().map(|one| {
                let addresses = one.addresses.iter().map(ToString::to_string);
                let names: Vec<String> = one.dns_names.iter().cloned().chain(addresses).collect();
                vec![
                    one.name.clone(),
                    one.subject.clone(),
                    one.issuer.clone(),
                    day(one.not_after),
                    left(one.not_after - now),
                    names.join(","),
                ]
            }));
            print!("{}", print::columns(&rows));
        }
    }
    Ok(())
}

fn left(seconds: i64) -> String {
    match seconds {
        ..=0 => "expired".into(),
        1..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How far replacements are, for people.
fn told(status: &Value) -> String {
    let mut text = String::new();
    for (key, what) in [
        ("authorities", "Certificate authorities"),
        ("accountKey", "Service-account key"),
    ] {
        let one = &status[key];
        let phase = match one["phase"].as_str().unwrap_or_default() {
            "steady" => "nothing is being replaced",
            "trusted" => "the next one is trusted, and does nothing yet",
            "issuing" => "the new one is at work, the old one is still trusted",
            other => other,
        };
        text.push_str(&format!("{what}: {phase}\n"));
        for waiting in waiting(one) {
            text.push_str(&format!("  waiting for {waiting}\n"));
        }
    }
    text
}

fn waiting(status: &Value) -> Vec<String> {
    let all = status["waitingFor"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn name_of(what: Rotating) -> &'static str {
    match what {
        Rotating::Authorities => "authorities",
        Rotating::AccountKey => "accountKey",
    }
}

/// A server, running or not.
struct Target {
    data_dir: PathBuf,
    kubeconfig: PathBuf,
}

impl Target {
    fn found(&self) -> Result<Vec<Found>> {
        let mut kubeconfigs = vec![self.data_dir.join("admin.kubeconfig")];
        if !kubeconfigs.contains(&self.kubeconfig) {
            kubeconfigs.push(self.kubeconfig.clone());
        }
        Ok(inventory::list(&self.data_dir.join("pki"), &kubeconfigs)?)
    }

    /// Asks the running server; `None` where none answers.
    async fn ask(&self, wish: Option<Value>) -> Result<Option<Value>> {
        if !self.kubeconfig.exists() {
            return Ok(None);
        }
        // Read anew each time: it changes with the certificates.
        let client = sampan_client::from_kubeconfig(&self.kubeconfig).await?;
        let request = match wish {
            None => http::Request::get("/sampan/v1/certificates").body(Body::empty())?,
            Some(wish) => {
                http::Request::post("/sampan/v1/certificates").body(Body::from(serde_json::to_vec(&wish)?))?
            }
        };
        let response = match client.send(request).await {
            Ok(response) => response,
            Err(error) if refused(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !response.status().is_success() {
            return Err(crate::backup::refused(response).await);
        }
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Some(serde_json::from_slice(&body)?))
    }

    /// The store of a stopped server, and with it its lock.
    fn store(&self) -> Result<std::sync::Arc<Embedded>> {
        let dir = self.data_dir.join("store");
        if !dir.exists() {
            return Err(format!(
                "no server answers by {}, and there is no store in {}; start the server first",
                self.kubeconfig.display(),
                self.data_dir.display()
            )
            .into());
        }
        Ok(Embedded::open(&dir, StoreOptions::default())?)
    }

    async fn status(&self) -> Result<Value> {
        if let Some(status) = self.ask(None).await? {
            return Ok(status);
        }
        let keys = keyring::keys(&Place::of(&self.data_dir, None)).map_err(|error| error.to_string())?;
        let of = |what| json!({"phase": keys.phase(what).name(), "waitingFor": []});
        Ok(json!({"authorities": of(Rotating::Authorities), "accountKey": of(Rotating::AccountKey)}))
    }

    async fn renew(&self, names: Vec<String>, all: bool) -> Result<()> {
        if names.is_empty() && !all {
            return Err("say which with their names (see `sampan cert list`), or --all".into());
        }
        let renewed: Vec<String> = match self.ask(Some(json!({"action": "renew", "names": names}))).await? {
            Some(answer) => serde_json::from_value(answer["renewed"].clone())?,
            None => {
                let store = self.store()?;
                let pki = self.data_dir.join("pki");
                let known = inventory::list(&pki, &[])?;
                if let Some(name) = names.iter().find(|name| !known.iter().any(|one| one.name == **name)) {
                    return Err(format!("there is no certificate {name:?} in {}", pki.display()).into());
                }
                let renewed = sampan_pki::renew_stored(&pki, &|name| all || names.iter().any(|wanted| wanted == name));
                store.close();
                renewed?
            }
        };
        match renewed.as_slice() {
            [] => return Err("nothing was renewed: an authority is replaced with `sampan cert rotate-ca`".into()),
            names => println!("Renewed: {}", names.join(", ")),
        }
        Ok(())
    }

    async fn rotate(&self, what: Rotating, rotate: Rotate) -> Result<()> {
        if rotate.retire {
            self.step(what, Step::Retire, rotate.force).await?;
            println!("The old one is trusted no longer.");
            return Ok(());
        }
        if rotate.cancel {
            self.step(what, Step::Cancel, false).await?;
            println!("The next one is forgotten.");
            return Ok(());
        }
        let deadline = Instant::now() + Duration::try_from(rotate.timeout.unwrap_or(SignedDuration::MAX))?;
        let phase = |status: &Value| status[name_of(what)]["phase"].as_str().unwrap_or_default().to_owned();
        let mut status = self.status().await?;
        if phase(&status) == "steady" {
            status = self.step(what, Step::Trust, false).await?;
            println!("1. The next one is made and trusted beside the one in use.");
        }
        if phase(&status) == "trusted" {
            self.until_followed(what, rotate.force, deadline).await?;
            if rotate.only_trust {
                println!("Everybody has been told. Run this again without --only-trust to let it work.");
                return Ok(());
            }
            status = self.step(what, Step::Issue, false).await?;
            println!("2. The new one is at work; the old one is still trusted.");
        }
        if phase(&status) == "issuing" && what == Rotating::Authorities {
            self.until_followed(what, rotate.force, deadline).await?;
            println!("3. The server's certificates and those of its nodes are issued by the new one.");
        }
        println!("{}", farewell(what));
        Ok(())
    }

    /// Waits until nobody is behind.
    async fn until_followed(&self, what: Rotating, force: bool, deadline: Instant) -> Result<()> {
        let mut shown = Vec::new();
        loop {
            let Some(status) = self.ask(None).await? else {
                println!("The server does not run: it and its nodes follow when it does.");
                return Ok(());
            };
            let waiting = waiting(&status[name_of(what)]);
            if waiting.is_empty() {
                return Ok(());
            }
            if force {
                println!("Not waiting for {}.", waiting.join("; "));
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!(
                    "still behind: {}; run this again when they are there, or with --force to go on without them",
                    waiting.join("; ")
                )
                .into());
            }
            for one in &waiting {
                if !shown.contains(one) {
                    println!("   waiting for {one}");
                }
            }
            shown = waiting;
            tokio::time::sleep(ASK).await;
        }
    }

    async fn step(&self, what: Rotating, step: Step, force: bool) -> Result<Value> {
        let name = match step {
            Step::Trust => "trust",
            Step::Issue => "issue",
            Step::Retire => "retire",
            Step::Cancel => "cancel",
        };
        let wish = json!({"action": "step", "what": name_of(what), "step": name, "force": force});
        if let Some(status) = self.ask(Some(wish)).await? {
            return Ok(status);
        }
        if step == Step::Retire && !force {
            return Err("only a running server knows who still needs the old one: start it, or use --force".into());
        }
        let store = self.store()?;
        let made = offline(&store, &self.data_dir, what, step).await;
        store.close();
        made?;
        self.status().await
    }
}

async fn offline(store: &Embedded, data_dir: &Path, what: Rotating, step: Step) -> Result<()> {
    let place = Place::of(data_dir, None);
    let record = keyring::step(store, &place, what, step)
        .await
        .map_err(|error| error.to_string())?;
    place.follow(&record).map_err(|error| error.to_string())?;
    Ok(())
}

/// Nobody listens: not the same as being turned away.
fn refused(error: &kube::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io.kind() == std::io::ErrorKind::ConnectionRefused;
        }
        source = cause.source();
    }
    false
}

fn farewell(what: Rotating) -> &'static str {
    match what {
        Rotating::Authorities => {
            "The old authority is still trusted. Before you retire it with `sampan cert rotate-ca --retire`:\n\
             - replace copies of admin.kubeconfig and other kubeconfigs by new ones (the server has rewritten its own);\n\
             - restart Pods that read their ca.crt only when they start, such as with `kubectl rollout restart`;\n\
             - ask anew for certificates that were signed for people."
        }
        Rotating::AccountKey => {
            "Tokens of the old key are still believed. Running Pods renew theirs within a day; then retire it with\n\
             `sampan cert rotate-service-account-key --retire`."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_short() {
        for (seconds, text) in [
            (-5, "expired"),
            (0, "expired"),
            (90, "1m"),
            (7200, "2h"),
            (31_536_000, "365d"),
        ] {
            assert_eq!(left(seconds), text);
        }
    }

    #[test]
    fn who_is_behind_is_told() {
        let status = json!({
            "authorities": {"phase": "trusted", "waitingFor": ["node n1 (x)"]},
            "accountKey": {"phase": "steady", "waitingFor": []},
        });
        assert_eq!(
            told(&status),
            "Certificate authorities: the next one is trusted, and does nothing yet\n  waiting for node n1 (x)\n\
             Service-account key: nothing is being replaced\n"
        );
    }
}
