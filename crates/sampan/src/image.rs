//! `sampan image`: the same image store the server uses, changed under its lock.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use sampan_runtime::embedded::user_of_image;
use sampan_runtime::images::{ImageStore, Reference, Registry, RegistryConfig};
use sampan_runtime::{Image, PullProgressFn, RegistryAuth};

use crate::cli::{Image as Command, ImageCommand};
use crate::{options, print};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

pub async fn run(command: Command) -> Result {
    let root = options::runtime_dir(&command.data_dir).join("images");
    let store = Arc::new(
        ImageStore::open(&root).map_err(|error| format!("cannot open the image store {}: {error}", root.display()))?,
    );
    match command.command {
        ImageCommand::Import { paths, name } => {
            for path in paths {
                let (into, name, shown) = (Arc::clone(&store), name.clone(), path.display().to_string());
                let ids = tokio::task::spawn_blocking(move || into.import(&path, name.as_deref())).await?;
                for id in ids.map_err(|error| format!("cannot import {shown}: {error}"))? {
                    announce(&id, &store)?;
                }
            }
            Ok(())
        }
        ImageCommand::List { json } => list(&store, json),
        ImageCommand::Pull {
            names,
            credentials,
            insecure_registries,
            ca_file,
        } => {
            let config = RegistryConfig {
                insecure: insecure_registries.into_iter().collect(),
                ca_files: ca_file,
            };
            let registry = Registry::new(&config)?;
            let credentials = credentials.as_deref().map(credential).transpose()?;
            for name in names {
                pull(&registry, &store, &name, credentials.as_ref()).await?;
            }
            Ok(())
        }
        ImageCommand::Remove { names } => {
            for name in names {
                let users = |id: &str| user_of(&command.data_dir, id);
                store
                    .remove(&name, users)
                    .map_err(|error| format!("cannot remove {name}: {error}"))?;
                println!("{name} removed");
            }
            Ok(())
        }
    }
}

/// A container of the server that uses the image, if any.
fn user_of(data_dir: &Path, image_id: &str) -> Option<String> {
    user_of_image(&options::runtime_dir(data_dir), image_id)
}

fn announce(id: &str, store: &ImageStore) -> Result {
    match store.get(id)? {
        Some(image) => println!("{} imported", image.repo_tags.first().unwrap_or(&image.id)),
        None => println!("{id} imported"),
    }
    Ok(())
}

fn credential(text: &str) -> std::result::Result<RegistryAuth, String> {
    let (username, password) = text.split_once(':').ok_or("credentials are USER:PASSWORD")?;
    Ok(RegistryAuth {
        username: username.into(),
        password: password.into(),
        ..RegistryAuth::default()
    })
}

async fn pull(registry: &Registry, store: &Arc<ImageStore>, name: &str, credentials: Option<&RegistryAuth>) -> Result {
    let reference: Reference = name.parse()?;
    let bar = ProgressBar::no_length();
    if std::io::stderr().is_terminal() {
        bar.set_style(ProgressStyle::with_template(
            "{msg} {bytes}/{total_bytes} {wide_bar} {bytes_per_sec}",
        )?);
        bar.set_message(name.to_owned());
    } else {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let shown = bar.clone();
    let progress: PullProgressFn = Arc::new(move |progress| {
        shown.set_length(progress.bytes);
        shown.set_position(progress.bytes_done);
    });
    let outcome = registry.pull(store, &reference, credentials, Some(progress)).await;
    bar.finish_and_clear();
    outcome.map_err(|error| format!("cannot pull {name}: {error}"))?;
    println!("{reference} pulled");
    Ok(())
}

fn list(store: &ImageStore, json: bool) -> Result {
    let images = store.list()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&images)?);
        return Ok(());
    }
    let mut rows = vec![["IMAGE", "TAG", "IMAGE ID", "SIZE"].map(str::to_owned).to_vec()];
    rows.extend(images.iter().flat_map(image_rows));
    print!("{}", print::columns(&rows));
    Ok(())
}

fn image_rows(image: &Image) -> Vec<Vec<String>> {
    let id: String = image.id.trim_start_matches("sha256:").chars().take(12).collect();
    let row = |name: &str, tag: &str| vec![name.to_owned(), tag.to_owned(), id.clone(), print::bytes(image.size)];
    if image.repo_tags.is_empty() {
        return vec![row("<none>", "<none>")];
    }
    image
        .repo_tags
        .iter()
        .map(|name| {
            name.rsplit_once(':')
                .map_or(row(name, "latest"), |(name, tag)| row(name, tag))
        })
        .collect()
}
