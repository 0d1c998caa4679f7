//! Stretches of addresses, neighbours merged: which parts of a reserved range have something mapped. Pure.

use std::collections::BTreeMap;

/// Disjoint stretches, no two of which touch: start → end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(BTreeMap<u64, u64>);

impl Extents {
    /// Adds `start..end`.
    pub fn insert(&mut self, start: u64, end: u64) {
        self.remove(start, end);
        let (mut start, mut end) = (start, end);
        if let Some((&before, &its_end)) = self.0.range(..start).next_back()
            && its_end == start
        {
            start = before;
        }
        if let Some(after) = self.0.remove(&end) {
            end = after;
        }
        self.0.insert(start, end);
    }

    /// Takes `start..end` away, as far as it is there.
    pub fn remove(&mut self, start: u64, end: u64) {
        while let Some((&its_start, &its_end)) = self.0.range(..end).next_back()
            && its_end > start
        {
            self.0.remove(&its_start);
            if its_end > end {
                self.0.insert(end, its_end);
            }
            if its_start < start {
                self.0.insert(its_start, start);
                return;
            }
        }
    }

    /// The stretch that holds `at`: its start and end.
    pub fn stretch(&self, at: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.0.range(..=at).next_back()?;
        (at < end).then_some((start, end))
    }

    /// True if any of `start..end` is there.
    pub fn touches(&self, start: u64, end: u64) -> bool {
        self.0.range(..end).next_back().is_some_and(|(_, &its_end)| its_end > start)
    }

    /// True for nothing at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if all of `start..end` is there.
    pub fn holds(&self, start: u64, end: u64) -> bool {
        self.0.range(..=start).next_back().is_some_and(|(_, &its_end)| end <= its_end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn extents_are_what_a_list_of_pages_says(
            steps in prop::collection::vec((any::<bool>(), 0usize..40, 1usize..12), 1..60)
        ) {
            let mut pages = [false; 64];
            let mut extents = Extents::default();
            for (insert, start, len) in steps {
                let end = start + len;
                pages[start..end].fill(insert);
                if insert { extents.insert(start as u64, end as u64) } else { extents.remove(start as u64, end as u64) }
                for a in 0..60 {
                    for b in a + 1..=60 {
                        let (start, end) = (a as u64, b as u64);
                        prop_assert_eq!(extents.holds(start, end), pages[a..b].iter().all(|&p| p), "{}..{}", a, b);
                        prop_assert_eq!(extents.touches(start, end), pages[a..b].iter().any(|&p| p), "{}..{}", a, b);
                    }
                    let stretch = pages[a].then(|| {
                        let start = pages[..a].iter().rposition(|p| !p).map_or(0, |p| p + 1);
                        (start as u64, (a + pages[a..].iter().position(|p| !p).unwrap()) as u64)
                    });
                    prop_assert_eq!(extents.stretch(a as u64), stretch);
                }
                let merged = extents.0.iter().zip(extents.0.iter().skip(1)).all(|((_, e), (s, _))| e < s);
                prop_assert!(merged, "{:?}", extents);
            }
        }
    }
}
