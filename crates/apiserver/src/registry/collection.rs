//! Delete of a collection: a list, then deletes side by side (the store commits them together).

use futures::StreamExt;

use super::list::List;
use super::reply::Reply;
use super::{Call, Filter, Registry};
use crate::Refusal;
use crate::admission::Notes;
use crate::request::{DeleteOptions, ListOptions};

/// Deletes in flight at once.
const WIDTH: usize = 32;

impl Registry {
    pub async fn delete_collection(
        &self,
        call: &mut Call,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<Reply, Refusal> {
        let storage = call.storage()?;
        let filter = Filter::new(&call.row, &storage, &call.info.namespace, "", list)?;
        self.cache.caught_up().await;
        let mut snapshot = storage.snapshot(self.cache.revision());
        if let Some(custom) = call.row.custom.as_ref().filter(|_| filter.reads_fields()) {
            snapshot = custom.view.snapshot(snapshot).await?;
        }
        let entries: Vec<_> = snapshot
            .index
            .iter()
            .filter(|entry| filter.matches(&storage, entry))
            .take(if list.limit == 0 { usize::MAX } else { list.limit })
            .cloned()
            .collect();
        let this = &*call;
        let results: Vec<(Notes, Result<(), Refusal>)> = futures::stream::iter(entries.iter().cloned().map(|entry| {
            let mut one = Call {
                row: this.row.clone(),
                info: this.info.clone(),
                query: this.query.clone(),
                headers: http::HeaderMap::new(),
                user: this.user.clone(),
                media: this.media,
                notes: Notes::default(),
                internal: this.internal,
                scale: None,
                tracked: false,
                conversions: Default::default(),
                audit: None,
            };
            "delete".clone_into(&mut one.info.verb);
            async move {
                let result = self.delete_entry(&mut one, &entry, options).await;
                (one.notes, result)
            }
        }))
        .buffer_unordered(WIDTH)
        .collect()
        .await;
        let mut outcome = Ok(());
        for (notes, result) in results {
            call.notes.take_up(notes);
            outcome = outcome.and(result);
        }
        outcome?;
        Ok(Reply::List(List {
            revision: snapshot.revision,
            entries,
            continue_token: None,
            remaining: None,
        }))
    }
}
