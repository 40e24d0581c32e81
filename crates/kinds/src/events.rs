//! `events.k8s.io/v1`: the newer face of the core group's Events.

use crate::core::event;
use crate::spec::Resource;
use crate::table::row;

pub(crate) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["ev"],
    columns: event::COLUMNS,
    cells: event::cells,
    fields: event::NEW_FIELDS,
    stored_as: Some(event::CONVERSION),
    strategy: &event::NEW_RULES,
    ..row("events.k8s.io", "Event", "EventList", "events", "event")
}];
