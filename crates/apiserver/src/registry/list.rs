//! Get and list: walks over shared entries, never over the database (but for states older than memory).

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sampan_api::status::{Cause, Details, Status};
use sampan_store::{self as store, Revision};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reply::Reply;
use super::{Call, Filter, Registry, store_failure};
use crate::request::{ListOptions, VersionMatch};
use crate::rows::Row;
use crate::watch_cache::{Entry, Scope, Snapshot, Storage};
use crate::{Refusal, refuse};

/// How long a read waits for a revision that has not happened yet.
const FUTURE: Duration = Duration::from_secs(3);

/// A list before it is encoded.
#[derive(Clone)]
pub struct List {
    pub revision: Revision,
    pub entries: Vec<Arc<Entry>>,
    pub continue_token: Option<String>,
    pub remaining: Option<usize>,
}

/// Upstream's continue token: where to go on, in which snapshot. -1: whatever is there now.
#[derive(Serialize, Deserialize)]
struct Token {
    #[serde(default)]
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

impl Token {
    /// `start` is a path; the token says where it is below `prefix`.
    fn encode(revision: i64, start: &str, prefix: &str) -> String {
        let token = Token {
            v: "meta.k8s.io/v1".into(),
            rv: revision,
            start: start.strip_prefix(prefix).unwrap_or(start).to_owned(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// The token with its start as a path below `prefix`, whatever the client made of it.
    fn decode(text: &str, prefix: &str) -> Result<Self, Refusal> {
        let invalid = |why: &str| refuse(Status::bad_request(format!("invalid continue token: {why}")));
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| {
            let known = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            let at = text.bytes().position(|byte| !known(&byte)).unwrap_or(text.len());
            invalid(&format!(
                "continue key is not valid: illegal base64 data at input byte {at}"
            ))
        })?;
        let mut token: Token =
            serde_json::from_slice(&bytes).map_err(|error| invalid(&format!("continue key is not valid: {error}")))?;
        if token.v != "meta.k8s.io/v1" {
            return Err(invalid(&format!(
                "continue key is not valid: server does not recognize this encoded version {}",
                token.v
            )));
        }
        if token.rv == 0 {
            return Err(invalid(
                "continue key is not valid: incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ));
        }
        if token.start.is_empty() {
            return Err(invalid(
                "continue key is not valid: encoded start key empty (version meta.k8s.io/v1)",
            ));
        }
        let start = token.start.strip_prefix('/').unwrap_or(&token.start);
        if start.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(invalid(&format!("continue key is not valid: {}", token.start)));
        }
        token.start = format!("{prefix}{start}");
        Ok(token)
    }
}

/// What Go says of text that is no number.
pub(super) fn syntax_error(text: &str) -> String {
    let why = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        "value out of range"
    } else {
        "invalid syntax"
    };
    format!("strconv.ParseUint: parsing {text:?}: {why}")
}

fn parse_version(text: &str) -> Result<Revision, Refusal> {
    text.parse().map_err(|_| {
        refuse(Status::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: {text:?}: {}",
            syntax_error(text)
        )))
    })
}

impl Registry {
    pub async fn get(&self, call: &mut Call) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        match call.query.text("resourceVersion") {
            Some("0") => {}
            Some(version) => self.wait_for(parse_version(version)?).await?,
            None => {
                self.cache.caught_up().await;
            }
        }
        match storage.get(&call.path()) {
            Some(entry) => {
                super::readable(&entry)?;
                Ok(Reply::Entry(200, entry))
            }
            None => Err(call.not_found()),
        }
    }

    /// Waits until the cache has reached a revision a client has named; says so when it does not come.
    pub(super) async fn wait_for(&self, revision: Revision) -> Result<(), Refusal> {
        if tokio::time::timeout(FUTURE, self.cache.reached(revision)).await.is_ok() {
            return Ok(());
        }
        let mut status = Status::timeout(format!(
            "Too large resource version: {revision}, current: {}",
            self.cache.revision()
        ));
        status.details = Some(Details {
            causes: vec![Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            }],
            retry_after_seconds: 1,
            ..Details::default()
        });
        Err(refuse(status))
    }

    pub async fn list(&self, call: &mut Call, options: &ListOptions) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let filter = Filter::new(&call.row, &storage, &call.info.namespace, "", options)?;
        Ok(match self.select(&call.row, &storage, &filter, options).await? {
            Selected::List(list) => Reply::List(list),
            Selected::Gone(status) => Reply::Plain(410, status),
        })
    }

    /// The entries a list is about.
    pub(super) async fn select(
        &self,
        row: &Row,
        storage: &Storage,
        filter: &Filter,
        options: &ListOptions,
    ) -> Result<Selected, Refusal> {
        let prefix = match &filter.scope {
            Scope::Namespace(namespace) => format!("{namespace}/"),
            _ if !filter.namespace().is_empty() => format!("{}/", filter.namespace()),
            _ => String::new(),
        };
        let (stored, start) = match self.view(storage, filter, options, &prefix).await? {
            View::At(snapshot, start) => (snapshot, start),
            View::Gone(start) => return Ok(Selected::Gone(gone(&start, &prefix))),
        };
        let snapshot = Snapshot {
            revision: stored.revision,
            index: stored.index.clone(),
        };
        // Selectable fields of custom kinds are those of the version asked for.
        let snapshot = match row.custom.as_ref().filter(|_| filter.reads_fields()) {
            Some(custom) => custom.view.snapshot(snapshot).await?,
            None => snapshot,
        };
        let mut entries = Vec::new();
        if let Scope::Object(path) = &filter.scope {
            entries.extend(
                snapshot
                    .index
                    .get(path)
                    .filter(|entry| filter.matches(storage, entry))
                    .cloned(),
            );
            return Ok(Selected::List(List {
                revision: snapshot.revision,
                entries,
                continue_token: None,
                remaining: None,
            }));
        }
        let from = if start.is_empty() {
            prefix.as_str()
        } else {
            start.as_str()
        };
        let scope = snapshot
            .index
            .from(from)
            .take_while(|entry| entry.path().starts_with(&prefix));
        if let Some(entry) = storage.first_unreadable(scope) {
            return Err(super::unreadable_in_list(entry));
        }
        let mut walk = snapshot
            .index
            .from(from)
            .take_while(|entry| entry.path().starts_with(&prefix))
            .peekable();
        // As upstream has it: whoever takes any version takes all of it.
        let any = options.resource_version == "0" && options.continue_token.is_empty();
        let limit = if options.limit == 0 || any {
            usize::MAX
        } else {
            options.limit
        };
        while entries.len() < limit {
            let Some(entry) = walk.next() else { break };
            if filter.matches(storage, entry) {
                entries.push(entry.clone());
            }
        }
        let more = entries.len() == limit && walk.any_left(storage, filter);
        let mut list = List {
            revision: snapshot.revision,
            entries,
            continue_token: None,
            remaining: None,
        };
        if more && let Some(last) = list.entries.last() {
            let next = format!("{}\0", last.path());
            list.continue_token = Some(Token::encode(snapshot.revision as i64, &next, &prefix));
            if filter.is_plain() {
                let rest = snapshot
                    .index
                    .from(&next)
                    .take_while(|entry| entry.path().starts_with(&prefix))
                    .count();
                list.remaining = Some(rest);
            }
            storage.keep(&stored);
        }
        Ok(Selected::List(list))
    }

    /// The state at a revision of the past, from memory or else from the store, until it is compacted. Nothing may have
    /// changed since and the state still be known; it expires all the same, as clients (and tests of them) expect.
    async fn past(&self, storage: &Storage, revision: Revision) -> Result<Option<Snapshot>, Refusal> {
        let store = self.cache.store();
        if revision < store.compacted() {
            return Ok(None);
        }
        if let Some(snapshot) = storage.snapshot_at(revision) {
            return Ok(Some(snapshot));
        }
        let root = storage.key("");
        match store.range_at(&root, &store::prefix_end(&root), 0, revision).await {
            Ok(page) => Ok(Some(storage.snapshot_of(page))),
            Err(store::Error::Compacted { .. }) => Ok(None),
            Err(error) => Err(store_failure(error)),
        }
    }

    /// The snapshot a list reads and the path it starts at.
    async fn view(
        &self,
        storage: &Storage,
        filter: &Filter,
        options: &ListOptions,
        prefix: &str,
    ) -> Result<View, Refusal> {
        if !options.continue_token.is_empty() {
            let token = Token::decode(&options.continue_token, prefix)?;
            if !matches!(options.resource_version.as_str(), "" | "0") {
                return Err(refuse(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                )));
            }
            if token.rv < 0 {
                self.cache.caught_up().await;
                return Ok(View::At(storage.snapshot(self.cache.revision()), token.start));
            }
            self.wait_for(token.rv as Revision).await?;
            return Ok(match self.past(storage, token.rv as Revision).await? {
                Some(snapshot) => View::At(snapshot, token.start),
                None => View::Gone(token.start),
            });
        }
        match options.resource_version.as_str() {
            "" => {
                self.cache.caught_up().await;
            }
            "0" => {}
            version => {
                let revision = parse_version(version)?;
                self.wait_for(revision).await?;
                let exact = options.version_match == VersionMatch::Exact
                    || (options.version_match == VersionMatch::Unset && options.limit > 0);
                if exact {
                    return self
                        .past(storage, revision)
                        .await?
                        .map(|snapshot| View::At(snapshot, String::new()))
                        .ok_or_else(|| {
                            refuse(Status::expired("The resourceVersion for the provided list is too old."))
                        });
                }
            }
        }
        let revision = self.cache.revision();
        Ok(match &filter.scope {
            Scope::Indexed(value) if options.limit == 0 => View::At(storage.indexed(value, revision), String::new()),
            _ => View::At(storage.snapshot(revision), String::new()),
        })
    }
}

/// What a list reads: a snapshot and where to begin, or a continue token (its start) whose snapshot is gone.
enum View {
    At(Snapshot, String),
    Gone(String),
}

pub(super) enum Selected {
    List(List),
    /// A Status with a token that goes on in the present.
    Gone(Value),
}

fn gone(start: &str, prefix: &str) -> Value {
    let mut status = Status::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    )
    .to_value();
    status["metadata"]["continue"] = Token::encode(-1, start, prefix).into();
    status
}

trait Rest {
    fn any_left(&mut self, storage: &Storage, filter: &Filter) -> bool;
}

impl<'a, I: Iterator<Item = &'a Arc<Entry>>> Rest for I {
    fn any_left(&mut self, storage: &Storage, filter: &Filter) -> bool {
        self.any(|entry| filter.matches(storage, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_bad_ones_are_refused() {
        for (path, prefix, start) in [("ns/a\0", "", "ns/a\0"), ("ns/a\0", "ns/", "a\0")] {
            let text = Token::encode(42, path, prefix);
            let raw: Token = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(&text).unwrap()).unwrap();
            assert_eq!(raw.start, start);
            let token = Token::decode(&text, prefix).unwrap();
            assert_eq!((token.rv, token.start.as_str()), (42, path));
        }
        let of = |v: &str, rv: i64, start: &str| {
            URL_SAFE_NO_PAD.encode(serde_json::json!({"v": v, "rv": rv, "start": start}).to_string())
        };
        let v1 = "meta.k8s.io/v1";
        for (bad, why) in [
            ("!".to_owned(), "illegal base64 data at input byte 0"),
            ("aGVsbG8".to_owned(), "continue key is not valid"),
            (of("x", 1, "a"), "does not recognize this encoded version x"),
            (of(v1, 0, "a"), "incorrect encoded start resourceVersion"),
            (of(v1, 1, ""), "encoded start key empty"),
            (of(v1, 1, "../a"), "continue key is not valid: ../a"),
        ] {
            let refusal = Token::decode(&bad, "").err().unwrap();
            assert!(
                refusal.code == 400 && refusal.message.contains(why),
                "{bad}: {}",
                refusal.message
            );
        }
    }
}
