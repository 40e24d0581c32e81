//! Which groups and versions there are, ours and those of extension servers, in the order clients are to prefer them.

use std::sync::Arc;

use crate::aggregator::priority::{self, Priority, by_name};
use crate::aggregator::{Remote, Remotes};
use crate::rows::Table;

/// What is served at one moment.
pub struct View<'a> {
    pub table: &'a Table,
    pub remotes: &'a Remotes,
}

pub struct Group<'a> {
    pub name: &'a str,
    priority: i64,
    pub versions: Vec<Version<'a>>,
}

pub struct Version<'a> {
    pub name: &'a str,
    priority: i64,
    /// Who answers it, if not we.
    pub remote: Option<&'a Arc<Remote>>,
}

impl<'a> View<'a> {
    /// The most important group first; in it the most important version first.
    pub fn groups(&self) -> Vec<Group<'a>> {
        let mut groups: Vec<Group<'a>> = Vec::new();
        for ((group, version), remote) in self.remotes {
            add(&mut groups, group, version, remote.priority(), Some(remote));
        }
        for row in &self.table.rows {
            let (group, version) = (row.spec.group, row.spec.version);
            let place = if row.custom.is_some() {
                priority::CUSTOM
            } else {
                priority::of(group, version)
            };
            add(&mut groups, group, version, place, None);
        }
        for group in &mut groups {
            group.versions.sort_by(|one, other| {
                other
                    .priority
                    .cmp(&one.priority)
                    .then_with(|| by_name(one.name, other.name))
            });
        }
        groups.sort_by(|one, other| other.priority.cmp(&one.priority).then_with(|| one.name.cmp(other.name)));
        groups
    }
}

/// The first who claims a version has it.
fn add<'a>(
    groups: &mut Vec<Group<'a>>,
    group: &'a str,
    version: &'a str,
    place: Priority,
    remote: Option<&'a Arc<Remote>>,
) {
    let at = groups.iter().position(|known| known.name == group).unwrap_or_else(|| {
        groups.push(Group {
            name: group,
            priority: place.group,
            versions: Vec::new(),
        });
        groups.len() - 1
    });
    let Some(known) = groups.get_mut(at) else { return };
    if known.versions.iter().any(|one| one.name == version) {
        return;
    }
    known.priority = known.priority.max(place.group);
    known.versions.push(Version {
        name: version,
        priority: place.version,
        remote,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Rows;

    #[test]
    fn built_in_groups_stand_in_upstreams_order() {
        let (rows, _) = Rows::build(sampan_kinds::resources());
        let (table, remotes) = (rows.get(), Remotes::new());
        let view = View {
            table: &table,
            remotes: &remotes,
        };
        let names: Vec<&str> = view.groups().iter().map(|group| group.name).collect();
        let at = |name: &str| names.iter().position(|known| *known == name).unwrap();
        for pair in [
            ["apiregistration.k8s.io", ""],
            ["", "apps"],
            ["apps", "events.k8s.io"],
            ["autoscaling", "batch"],
            ["admissionregistration.k8s.io", "apiextensions.k8s.io"],
            ["apiextensions.k8s.io", "scheduling.k8s.io"],
        ] {
            assert!(at(pair[0]) < at(pair[1]), "{pair:?} in {names:?}");
        }
        let groups = view.groups();
        let versions = |name: &str| {
            groups[at(name)]
                .versions
                .iter()
                .map(|version| version.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(versions("autoscaling"), ["v2", "v1"]);
    }
}
