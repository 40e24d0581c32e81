//! `sampan backup`, `sampan restore` and `sampan migrate`: the store's whole content, out, in, and over to etcd.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;

use http_body_util::BodyExt;
use sampan_store::backup::Backup;
use sampan_store::embedded::Embedded;
use sampan_store::etcd;
use sampan_tasks::Tasks;
use serde_json::json;

use crate::{cli, options};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Asks the running server for everything it holds. The file appears whole or not at all.
pub async fn backup(command: cli::Backup) -> Result<()> {
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    let request = http::Request::get("/sampan/v1/backup").body(kube::client::Body::empty())?;
    let response = client.send(request).await?;
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    let path = &command.file;
    let problem = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    // Made anew: a file that lies there may be somebody else's, or a link.
    match std::fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(problem(error).into()),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&partial)
        .map_err(problem)?;
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            file.write_all(&data).map_err(problem)?;
        }
    }
    file.sync_all().map_err(problem)?;
    // What was received is read once more before it is called a backup.
    let read = File::open(&partial).map_err(problem)?;
    let backup =
        Backup::read(BufReader::new(read)).map_err(|error| format!("the backup did not arrive whole: {error}"))?;
    std::fs::rename(&partial, path).map_err(problem)?;
    println!(
        "{}: {} keys as of revision {}",
        path.display(),
        backup.entries.len(),
        backup.revision
    );
    println!("It holds the cluster's Secrets. To restore it elsewhere, keep a copy of the file cluster-token too.");
    Ok(())
}

/// Fills the store of a stopped server.
pub async fn restore(command: cli::Restore) -> Result<()> {
    let path = &command.file;
    let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let backup = Backup::read(BufReader::new(file)).map_err(|error| format!("{}: {error}", path.display()))?;
    let (count, revision) = (backup.entries.len(), backup.revision);
    match etcd(command.etcd)? {
        Some(options) => {
            let tasks = Tasks::new();
            sampan_store::movable::restore(&options, backup, command.force, &tasks).await?;
        }
        None => {
            let kept = Embedded::restore(&command.data_dir.join("store"), &backup, command.force)?;
            if let Some(kept) = kept {
                println!("The old store is kept as {}.", kept.display());
            }
        }
    }
    println!("Restored {count} keys as of revision {revision}. Start the servers now.");
    Ok(())
}

/// Asks the running server to move.
pub async fn migrate(command: cli::Migrate) -> Result<()> {
    let Some(options) = etcd(command.etcd)? else {
        return Err("say where to with --etcd-servers".into());
    };
    let client = sampan_client::from_kubeconfig(&command.kubeconfig).await?;
    // The server reads the files, wherever this was typed.
    let absolute = |path: Option<std::path::PathBuf>| path.map(std::path::absolute).transpose();
    let wish = json!({
        "servers": options.servers, "prefix": options.prefix, "force": command.force,
        "caFile": absolute(options.ca_file)?, "certFile": absolute(options.cert_file)?, "keyFile": absolute(options.key_file)?,
    });
    let request =
        http::Request::post("/sampan/v1/migrate").body(kube::client::Body::from(serde_json::to_vec(&wish)?))?;
    let response = client.send(request).await?;
    if !response.status().is_success() {
        return Err(refused(response).await);
    }
    let mut body = response.into_body();
    let mut last = String::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            last = String::from_utf8_lossy(&data).trim_end().to_owned();
            println!("{last}");
        }
    }
    if last.starts_with("moved ") {
        Ok(())
    } else {
        Err("the cluster was not moved".into())
    }
}

fn etcd(etcd: cli::Etcd) -> Result<Option<etcd::Options>> {
    let files = [etcd.etcd_cafile, etcd.etcd_certfile, etcd.etcd_keyfile];
    Ok(options::etcd(etcd.etcd_servers, files, etcd.etcd_prefix)?)
}

pub async fn refused(response: http::Response<kube::client::Body>) -> Box<dyn std::error::Error> {
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|answer| answer["message"].as_str().map(str::to_owned))
        .unwrap_or_default();
    format!("the server refused ({status}): {message}").into()
}
