//! Sets of completion indexes in the form of a Job's status: `1,3-5,7`.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";

/// A set of indexes: its intervals, ascending, with gaps between them. A Job may have very many indexes, and few gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads the text of a status; indexes from `completions` on do not count, what cannot be read is left out.
    pub(super) fn parse(text: &str, completions: i32) -> Self {
        let interval = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first = first.trim().parse::<i32>().ok()?.max(0);
            let last = last.trim().parse::<i32>().ok()?.min(completions.saturating_sub(1));
            (first <= last).then_some((first, last))
        };
        Self::merged(text.split(',').filter_map(interval).collect())
    }

    fn merged(mut intervals: Vec<(i32, i32)>) -> Self {
        intervals.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(intervals.len());
        for (first, last) in intervals {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Indexes(merged)
    }

    pub(super) fn insert(&mut self, index: i32) -> bool {
        let place = self.0.partition_point(|(_, last)| *last < index);
        if self.0.get(place).is_some_and(|(first, _)| *first <= index) {
            return false;
        }
        let joins_next = self
            .0
            .get(place)
            .is_some_and(|(first, _)| *first == index.saturating_add(1));
        let before = place.checked_sub(1);
        let joins_last = before
            .and_then(|before| self.0.get(before))
            .is_some_and(|(_, last)| *last == index - 1);
        match (before.filter(|_| joins_last), joins_next) {
            (Some(before), true) => {
                let (_, end) = self.0.remove(place);
                if let Some(interval) = self.0.get_mut(before) {
                    interval.1 = end;
                }
            }
            (Some(before), false) => {
                if let Some(interval) = self.0.get_mut(before) {
                    interval.1 = index;
                }
            }
            (None, true) => {
                if let Some(interval) = self.0.get_mut(place) {
                    interval.0 = index;
                }
            }
            (None, false) => self.0.insert(place, (index, index)),
        }
        true
    }

    pub(super) fn contains(&self, index: i32) -> bool {
        let place = self.0.partition_point(|(_, last)| *last < index);
        self.0.get(place).is_some_and(|(first, _)| *first <= index)
    }

    pub(super) fn len(&self) -> i32 {
        let len = self
            .0
            .iter()
            .map(|(first, last)| i64::from(last - first) + 1)
            .sum::<i64>();
        i32::try_from(len).unwrap_or(i32::MAX)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All indexes of both.
    pub(super) fn union(&self, other: &Indexes) -> Indexes {
        Self::merged(self.0.iter().chain(&other.0).copied().collect())
    }

    /// How many of `other`'s indexes are in this set.
    pub(super) fn common(&self, other: &Indexes) -> i32 {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut common = 0_i64;
        while let (Some(one), Some(two)) = (ours.peek(), theirs.peek()) {
            common += (i64::from(one.1.min(two.1)) - i64::from(one.0.max(two.0)) + 1).max(0);
            if one.1 < two.1 {
                ours.next();
            } else {
                theirs.next();
            }
        }
        i32::try_from(common).unwrap_or(i32::MAX)
    }

    /// The indexes below `completions` that are not in the set, ascending.
    pub(super) fn missing(&self, completions: i32) -> impl Iterator<Item = i32> {
        let starts = std::iter::once(0).chain(self.0.iter().map(|(_, last)| last.saturating_add(1)));
        let ends = self.0.iter().map(|(first, _)| *first).chain([completions]);
        starts.zip(ends).flat_map(move |(from, to)| from..to.min(completions))
    }
}

impl FromIterator<i32> for Indexes {
    fn from_iter<I: IntoIterator<Item = i32>>(indexes: I) -> Self {
        Self::merged(indexes.into_iter().map(|index| (index, index)).collect())
    }
}

impl std::fmt::Display for Indexes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut separator = "";
        for (first, last) in &self.0 {
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
    use std::collections::BTreeSet;

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
        fn as_a_plain_set(
            one in prop::collection::vec(0_i32..60, 0..40),
            two in prop::collection::vec(0_i32..60, 0..40),
        ) {
            let mut indexes = Indexes::default();
            let mut plain = BTreeSet::new();
            for index in &one {
                prop_assert_eq!(indexes.insert(*index), plain.insert(*index));
            }
            let collected: Indexes = one.iter().copied().collect();
            prop_assert_eq!(&collected, &indexes);
            prop_assert_eq!(Indexes::parse(&indexes.to_string(), 60), indexes.clone());
            prop_assert_eq!(usize::try_from(indexes.len()).unwrap(), plain.len());
            let other: Indexes = two.iter().copied().collect();
            let others: BTreeSet<i32> = two.iter().copied().collect();
            let common = i32::try_from(plain.intersection(&others).count()).unwrap();
            prop_assert_eq!(indexes.common(&other), common);
            let union: Indexes = plain.union(&others).copied().collect();
            prop_assert_eq!(indexes.union(&other), union);
            let missing: Vec<i32> = indexes.missing(50).collect();
            let expected: Vec<i32> = (0..50).filter(|index| !plain.contains(index)).collect();
            prop_assert_eq!(missing, expected);
            for index in 0..60 {
                prop_assert_eq!(indexes.contains(index), plain.contains(&index));
            }
        }
    }
}
