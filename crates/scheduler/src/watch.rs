//! How long a decision took, extension point by extension point, under upstream's names.
//!
//! The steps of a decision are not upstream's, but each does what one of upstream's points is there for: sums are brought
//! up to date ([`Point::PreFilter`]), nodes that changed are judged and nodes checked ([`Point::Filter`]), standings are
//! kept ([`Point::PreScore`]), and nodes are ranked ([`Point::Score`]). A [`Watch`] is read at the borders between them: a
//! few times a decision, not per node. Where the best node that passes is looked for from the best on, checking and
//! ranking are one step, which counts as filtering. One decision in ten times each plugin as well.

use std::time::{Duration, Instant};

use crate::memory::Row;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    PreFilter,
    Filter,
    PostFilter,
    PreScore,
    Score,
    Reserve,
    Permit,
    PreBind,
    Bind,
    PostBind,
    Unreserve,
}

impl Point {
    pub fn label(self) -> &'static str {
        match self {
            Point::PreFilter => "PreFilter",
            Point::Filter => "Filter",
            Point::PostFilter => "PostFilter",
            Point::PreScore => "PreScore",
            Point::Score => "Score",
            Point::Reserve => "Reserve",
            Point::Permit => "Permit",
            Point::PreBind => "PreBind",
            Point::Bind => "Bind",
            Point::PostBind => "PostBind",
            Point::Unreserve => "Unreserve",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Success,
    Unschedulable,
    Error,
}

impl Status {
    pub fn label(self) -> &'static str {
        match self {
            Status::Success => "Success",
            Status::Unschedulable => "Unschedulable",
            Status::Error => "Error",
        }
    }
}

/// A plugin's part in a decision.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub plugin: &'static str,
    pub point: Point,
    pub status: Status,
    pub took: Duration,
}

#[derive(Debug)]
pub struct Watch {
    since: Instant,
    /// Points up to [`Point::Score`], by their order.
    spent: [Option<Duration>; 5],
    /// Whether plugins are timed.
    sampled: bool,
    pub parts: Vec<Part>,
    /// Plugins that had something to say about Pods elsewhere, and whether they could filter and rank.
    pub beyond: Vec<(&'static str, bool, bool)>,
}

impl Watch {
    pub fn start(sampled: bool) -> Self {
        Watch {
            since: Instant::now(),
            spent: [None; 5],
            sampled,
            parts: Vec::new(),
            beyond: Vec::new(),
        }
    }

    /// What passed since the last time counts for this point.
    pub fn lap(&mut self, point: Point) {
        let now = Instant::now();
        if let Some(spent) = self.spent.get_mut(point as usize) {
            *spent.get_or_insert_default() += now - self.since;
        }
        self.since = now;
    }

    pub fn spent(&self, point: Point) -> Option<Duration> {
        self.spent.get(point as usize).copied().flatten()
    }

    /// The plugin whose part was last refused.
    pub fn refused(&mut self) {
        if let Some(part) = self.parts.last_mut() {
            part.status = Status::Unschedulable;
        }
    }

    /// Notes which cluster plugins take part.
    pub fn note_rows(&mut self, rows: &[Row]) {
        let rows = rows.iter().filter(|row| !row.tracker.is_idle());
        self.beyond
            .extend(rows.map(|row| (row.name, row.filters && row.tracker.may_refuse(), row.tracker.ranks())));
    }

    /// Does a plugin's part, with a watch if this decision's plugins are timed.
    pub fn part<T>(&mut self, plugin: &'static str, point: Point, part: impl FnOnce() -> T) -> T {
        if !self.sampled {
            return part();
        }
        let began = Instant::now();
        let answer = part();
        self.parts.push(Part {
            plugin,
            point,
            status: Status::Success,
            took: began.elapsed(),
        });
        answer
    }
}
