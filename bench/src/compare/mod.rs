//! Two control planes asked the same questions: every place where their answers differ.
//!
//! For each fixture (`bench/fixtures/*.yaml`: rich valid objects) the object is posted as it is and in hundreds of
//! mutants (see [`mutate`]), with `dryRun=All` and strict field validation; then it is made for real in both and put
//! in mutants, as a whole and through its status. Compared are the code, the whole Status (message, details, causes
//! in their order), the warnings, and of accepted objects what they became: that is defaults, validation, wording and
//! immutability. Known differences are listed with a reason in [`allowed`]; any other makes the command fail.
//!
//! Both servers should be alone: no controllers, no admission beyond what both have.

mod allowed;
mod answer;
mod mutate;
mod schema;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::{Value, json};

use crate::Result;
use crate::client::{Client, JSON, Lane};
use answer::Answer;
use mutate::Mutant;
use schema::Schemas;

const NAMESPACE: &str = "compare";
/// Mutants in flight: enough to hide latency, few enough for flow control.
const LANES: usize = 4;
const SETTLING: Duration = Duration::from_millis(300);

#[derive(clap::Args)]
pub struct Args {
    /// Only fixtures of this kind (`Pod`).
    #[arg(long)]
    kind: Option<String>,
    /// Only mutants whose description contains this.
    #[arg(long)]
    only: Option<String>,
    /// Where the fixtures are.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures"))]
    fixtures: PathBuf,
    /// Examples to print of each group of differences.
    #[arg(long, default_value_t = 1)]
    examples: usize,
}

/// What is compared, in the order it is done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Phase {
    Create,
    Update,
    Status,
}

struct Difference {
    phase: Phase,
    mutant: String,
    upstream: String,
    ours: String,
}

/// Where objects of a kind are posted.
struct Place {
    collection: String,
    has_status: bool,
    /// Kept objects: reviews and the like answer a creation and are gone.
    kept: bool,
}

struct Pair {
    upstream: Client,
    ours: Client,
}

/// Compares; the number of differences nobody expected.
pub async fn run(upstream: &Client, ours: &Client, args: &Args) -> Result<usize> {
    let pair = Pair {
        upstream: upstream.clone(),
        ours: ours.clone(),
    };
    for client in [upstream, ours] {
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        ask(&mut client.lane(), Method::POST, "/api/v1/namespaces", &body).await?;
    }
    let mut files: Vec<_> = std::fs::read_dir(&args.fixtures)?.collect::<std::io::Result<Vec<_>>>()?;
    files.sort_by_key(std::fs::DirEntry::file_name);
    let (mut unexpected, mut mutants, mut known) = (0, 0, 0);
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    for file in files {
        let text = std::fs::read_to_string(file.path())?;
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(&text).map_err(|error| format!("{}: {error}", file.path().display()))?;
        for object in objects {
            let kind = object["kind"].as_str().unwrap_or_default().to_owned();
            if args.kind.as_ref().is_some_and(|wanted| *wanted != kind) {
                continue;
            }
            let (count, differences) = fixture(&pair, &object, args).await?;
            let (expected, others): (Vec<_>, Vec<_>) = differences
                .into_iter()
                .partition(|difference| allowed::reason(&kind, difference).is_some());
            println!(
                "{kind} {}: {count} compared, {} known differences, {} others",
                object["metadata"]["name"].as_str().unwrap_or("-"),
                expected.len(),
                others.len()
            );
            print(&others, args.examples);
            for difference in &expected {
                if let Some(reason) = allowed::reason(&kind, difference) {
                    *reasons.entry(reason).or_default() += 1;
                }
            }
            mutants += count;
            known += expected.len();
            unexpected += others.len();
        }
    }
    for (reason, count) in reasons {
        println!("known: {count} x {reason}");
    }
    println!("{mutants} compared, {known} known differences, {unexpected} others");
    Ok(unexpected)
}

/// Prints differences by what they have in common: the two answers but for positions and the values quoted.
fn print(differences: &[Difference], examples: usize) {
    let mut groups: BTreeMap<(Phase, String, String), Vec<&Difference>> = BTreeMap::new();
    for difference in differences {
        let key = (
            difference.phase,
            answer::shape(&difference.upstream),
            answer::shape(&difference.ours),
        );
        groups.entry(key).or_default().push(difference);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
    for ((phase, ..), members) in groups {
        println!("  {} x {phase:?}", members.len());
        for member in members.iter().take(examples) {
            println!("    {}", member.mutant);
            println!("      upstream: {}", member.upstream);
            println!("      ours:     {}", member.ours);
        }
    }
}

async fn ask(lane: &mut Lane, method: Method, path: &str, body: &Value) -> Result<Answer> {
    let bytes = Bytes::from(serde_json::to_vec(body)?);
    match lane.send(method, path, Some((JSON, bytes))).await {
        Ok(response) => Answer::read(response).await,
        // A handler that crashes closes the connection: that is what there is to compare.
        Err(error) if is_incomplete(&*error) => Ok(Answer::none()),
        Err(error) => Err(error),
    }
}

fn is_incomplete(error: &(dyn std::error::Error + 'static)) -> bool {
    let error = error.downcast_ref::<hyper::Error>();
    error.is_some_and(hyper::Error::is_incomplete_message)
}

/// [`ask`]; where something else in the server (who fills in an aggregated role, who counts) has written the object
/// since it was read, once more with the version it has now.
async fn ask_anew(lane: &mut Lane, method: Method, path: &str, mut body: Value) -> Result<Answer> {
    const ATTEMPTS: usize = 5;
    let mut answer = ask(lane, method.clone(), path, &body).await?;
    for _ in 0..ATTEMPTS {
        if !answer.outdated() {
            break;
        }
        let one = path.split('?').next().unwrap_or_default().trim_end_matches("/status");
        let now = Answer::read(lane.send(Method::GET, one, None).await?).await?;
        let Some(version) = now.object().map(|now| now["metadata"]["resourceVersion"].clone()) else {
            break;
        };
        body["metadata"]["resourceVersion"] = version;
        answer = ask(lane, method.clone(), path, &body).await?;
    }
    Ok(answer)
}

async fn place(pair: &Pair, object: &Value) -> Result<Place> {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let list = pair.upstream.get(&root).await?;
    let resources = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let row = resources
        .iter()
        .find(|row| row["kind"] == kind && row["name"].as_str().is_some_and(|name| !name.contains('/')))
        .ok_or_else(|| format!("upstream serves no {kind} in {version}"))?;
    let name = row["name"].as_str().unwrap_or_default();
    let status = format!("{name}/status");
    Ok(Place {
        collection: if row["namespaced"] == true {
            format!("{root}/namespaces/{NAMESPACE}/{name}")
        } else {
            format!("{root}/{name}")
        },
        has_status: resources.iter().any(|row| row["name"] == status.as_str()),
        kept: row["verbs"]
            .as_array()
            .is_some_and(|verbs| verbs.iter().any(|verb| verb == "update")),
    })
}

const DRY: &str = "dryRun=All&fieldValidation=Strict&fieldManager=compare";

async fn fixture(pair: &Pair, object: &Value, args: &Args) -> Result<(usize, Vec<Difference>)> {
    let place = place(pair, object).await?;
    let schemas = Schemas::of(&pair.upstream, object["apiVersion"].as_str().unwrap_or_default()).await?;
    let wanted = |mutant: &Mutant| args.only.as_ref().is_none_or(|only| mutant.to_string().contains(only));
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let one = format!("{}/{name}", place.collection);
    let mut new = object.clone();
    let status = new.as_object_mut().and_then(|map| map.remove("status"));

    // What an earlier run left behind.
    if place.kept {
        delete(pair, &one).await?;
    }
    let mut mutants = mutate::all(&new, &schemas, "");
    mutants.retain(wanted);
    let path = format!("{}?{DRY}", place.collection);
    let mut differences = both(pair, Phase::Create, (&new, &new), &mutants, Method::POST, &path).await?;
    let mut count = mutants.len();
    if !place.kept {
        return Ok((count, differences));
    }

    let path = format!("{}?fieldManager=compare", place.collection);
    let (theirs, our) = (
        ask(&mut pair.upstream.lane(), Method::POST, &path, &new).await?,
        ask(&mut pair.ours.lane(), Method::POST, &path, &new).await?,
    );
    // What the servers themselves have to say of a new object (conditions) has a moment to come.
    tokio::time::sleep(SETTLING).await;
    let (Some(mut theirs), Some(mut our)) = (theirs.object().cloned(), our.object().cloned()) else {
        eprintln!("{one} cannot be made: {} / {}", theirs.text(""), our.text(""));
        return Ok((count, differences));
    };
    for made in [&mut theirs, &mut our] {
        if let Some(metadata) = made["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        // What is not there cannot be changed.
        answer::never_set(made);
    }
    let mut whole = theirs.clone();
    if let Some(map) = whole.as_object_mut() {
        map.remove("status");
    }
    let mut mutants = mutate::all(&whole, &schemas, "");
    mutants.retain(wanted);
    let path = format!("{one}?{DRY}");
    differences.extend(both(pair, Phase::Update, (&theirs, &our), &mutants, Method::PUT, &path).await?);
    count += mutants.len();
    if place.has_status
        && let Some(status) = status
    {
        theirs["status"] = status.clone();
        our["status"] = status;
        let mut mutants = mutate::all(&theirs, &schemas, "status");
        mutants.retain(wanted);
        let path = format!("{one}/status?{DRY}");
        differences.extend(both(pair, Phase::Status, (&theirs, &our), &mutants, Method::PUT, &path).await?);
        count += mutants.len();
    }
    delete(pair, &one).await?;
    Ok((count, differences))
}

/// Deletes an object in both, whatever holds it.
async fn delete(pair: &Pair, one: &str) -> Result<()> {
    for client in [&pair.upstream, &pair.ours] {
        let mut lane = client.lane();
        let answer = ask(&mut lane, Method::DELETE, one, &json!({"gracePeriodSeconds": 0})).await?;
        let held = answer
            .object()
            .is_some_and(|object| object["metadata"]["finalizers"].is_array());
        if held {
            let body = Bytes::from_static(br#"{"metadata":{"finalizers":null}}"#);
            Answer::read(
                lane.send(Method::PATCH, one, Some((crate::client::MERGE, body)))
                    .await?,
            )
            .await?;
        }
        finish_namespace(&mut lane, one).await?;
    }
    Ok(())
}

/// Nobody empties a Namespace here: what holds it is let go.
async fn finish_namespace(lane: &mut Lane, one: &str) -> Result<()> {
    if !one.starts_with("/api/v1/namespaces/") || one.matches('/').count() != 4 {
        return Ok(());
    }
    let answer = Answer::read(lane.send(Method::GET, one, None).await?).await?;
    if let Some(namespace) = answer.object() {
        let mut namespace = namespace.clone();
        namespace["spec"] = json!({});
        ask(lane, Method::PUT, &format!("{one}/finalize"), &namespace).await?;
    }
    Ok(())
}

async fn both(
    pair: &Pair,
    phase: Phase,
    (theirs, our): (&Value, &Value),
    mutants: &[Mutant],
    method: Method,
    path: &str,
) -> Result<Vec<Difference>> {
    let part = mutants.len().div_ceil(LANES).max(1);
    let work = mutants.chunks(part).map(|mutants| {
        let method = method.clone();
        async move {
            let (mut upstream, mut ours) = (pair.upstream.lane(), pair.ours.lane());
            let mut differences = Vec::new();
            for mutant in mutants {
                let uid = |object: &Value| object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                // Mutants are made of upstream's object: where one says its uid, it means the object's own.
                let mut our_body = mutant.apply(our);
                if !uid(theirs).is_empty() {
                    our_body = serde_json::from_str(&our_body.to_string().replace(&uid(theirs), &uid(our)))?;
                }
                let (their_answer, our_answer) = futures::future::try_join(
                    ask_anew(&mut upstream, method.clone(), path, mutant.apply(theirs)),
                    ask_anew(&mut ours, method.clone(), path, our_body),
                )
                .await?;
                if let Some((upstream, ours)) = answer::differ(&their_answer, &our_answer, &uid(theirs), &uid(our)) {
                    differences.push(Difference {
                        phase,
                        mutant: mutant.to_string(),
                        upstream,
                        ours,
                    });
                }
            }
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(differences)
        }
    });
    Ok(futures::future::try_join_all(work)
        .await?
        .into_iter()
        .flatten()
        .collect())
}
