//! Sets of completion indexes in the form of a Job's status: `1,3-5,7`.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(BTreeSet<i32>);

impl Indexes {
    /// Reads the text of a status; indexes from `completions` on do not count, what cannot be read is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let mut set = BTreeSet::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(first), Ok(last)) = (first.trim().parse::<i32>(), last.trim().parse::<i32>()) {
                set.extend(first.max(0)..=last.min(completions.saturating_sub(1)));
            }
        }
        Indexes(set)
    }

    pub(super) fn insert(&mut self, index: i32) -> bool {
        self.0.insert(index)
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        self.0.contains(&index)
    }

    pub(super) fn len(&self) -> i32 {
        i32::try_from(self.0.len()).unwrap_or(i32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of `other`'s indexes are in this set.
    pub(super) fn common(&self, other: &Indexes) -> i32 {
        let common = self.0.intersection(&other.0).count();
        i32::try_from(common).unwrap_or(i32::MAX)
    }
}

impl std::fmt::Display for Indexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while rest.next_if_eq(&last.saturating_add(1)).is_some() {
                last += 1;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                1 => write!(f, "{separator}{first},{last}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// The completion index of a Pod.
pub(super) fn of(pod: &Pod) -> Option<i32> {
    let index = pod.annotations().get(INDEX)?.parse().ok()?;
    (index >= 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_form() {
        let cases = [
            ("", ""),
            ("0", "0"),
            ("1,2", "1,2"),
            ("1,2,3", "1-3"),
            ("0,2-4,9", "0,2-4"),
        ];
        for (text, expected) in cases {
            assert_eq!(Indexes::parse(text, 9).to_string(), expected, "{text}");
        }
        assert_eq!(Indexes::parse("x,1-y,5", 9).to_string(), "5");
    }

    proptest! {
        #[test]
        fn round_trip(set in prop::collection::btree_set(0_i32..200, 0..60)) {
            let indexes = Indexes(set);
            prop_assert_eq!(Indexes::parse(&indexes.to_string(), 200), indexes);
        }
    }
}
