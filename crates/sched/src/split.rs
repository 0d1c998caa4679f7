//! Time of a device that several use at once, divided so that the parts sum up to it to the nanosecond.
//!
//! A stream's oldest operator on the device is its *head*. While heads run side by side, the time that passes is divided
//! equally between them; transfers over the host link, which DMA engines carry, get a part only where nothing else runs. Equal
//! parts are a convention: what an operator would have taken alone is a model's word, the time that passed is not. What an
//! integer division leaves over goes to later keys and is never lost.
//!
//! The dispatcher divides between tenants to hold them to their weights; the runtime between tenants and classes of operators,
//! for the books. Cost: a pass over the keys that run, which are few, at each start and end.

use crate::Nanos;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct User<K> {
    key: K,
    computing: u32,
    transferring: u32,
}

/// Who uses the device now, and since when nobody was charged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split<K> {
    /// In order of key.
    users: Vec<User<K>>,
    since: Nanos,
}

impl<K: Ord + Copy> Split<K> {
    /// Nobody, from `now` on.
    pub fn new(now: Nanos) -> Self {
        Self { users: Vec::new(), since: now }
    }

    /// A head starts, after [`Split::advance`] to the present.
    pub fn begin(&mut self, key: K, transfer: bool) {
        let at = match self.users.binary_search_by(|u| u.key.cmp(&key)) {
            Ok(at) => at,
            Err(at) => {
                self.users.insert(at, User { key, computing: 0, transferring: 0 });
                at
            }
        };
        let user = &mut self.users[at];
        *(if transfer { &mut user.transferring } else { &mut user.computing }) += 1;
    }

    /// A head ends, after [`Split::advance`] to the present.
    pub fn end(&mut self, key: K, transfer: bool) {
        let Ok(at) = self.users.binary_search_by(|u| u.key.cmp(&key)) else { return };
        let user = &mut self.users[at];
        let count = if transfer { &mut user.transferring } else { &mut user.computing };
        *count = count.saturating_sub(1);
        if (user.computing, user.transferring) == (0, 0) {
            self.users.remove(at);
        }
    }

    /// Divides the time that has passed; `charge` is told of each part that is not 0.
    pub fn advance(&mut self, now: Nanos, mut charge: impl FnMut(K, Nanos)) {
        let elapsed = now.saturating_sub(self.since);
        self.since = self.since.max(now);
        if elapsed == 0 || self.users.is_empty() {
            return;
        }
        let computing: u64 = self.users.iter().map(|u| u64::from(u.computing)).sum();
        let counts = |u: &User<K>| u64::from(if computing > 0 { u.computing } else { u.transferring });
        let all: u64 = self.users.iter().map(counts).sum();
        let (mut before, mut given) = (0, 0);
        for user in &self.users {
            before += counts(user);
            let upto = (u128::from(elapsed) * u128::from(before) / u128::from(all.max(1))) as Nanos;
            if upto > given {
                charge(user.key, upto - given);
            }
            given = upto;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn parts_are_equal_between_heads_and_transfers_are_free_beside_work() {
        let (mut split, mut had) = (Split::new(0), BTreeMap::<char, Nanos>::new());
        let mut to = |split: &mut Split<char>, now| split.advance(now, |key, ns| *had.entry(key).or_default() += ns);
        split.begin('a', false);
        to(&mut split, 10);
        split.begin('b', false);
        split.begin('b', false);
        split.begin('t', true);
        to(&mut split, 40);
        split.end('a', false);
        split.end('b', false);
        to(&mut split, 50);
        split.end('b', false);
        to(&mut split, 57);
        split.end('t', true);
        to(&mut split, 100);
        assert_eq!(had, BTreeMap::from([('a', 20), ('b', 30), ('t', 7)]));
    }

    #[test]
    fn nothing_is_lost_to_rounding() {
        let (mut split, mut sum) = (Split::new(0), 0);
        for key in 0..7 {
            split.begin(key, key % 3 == 0);
        }
        for now in 1..1000u64 {
            split.advance(now * now, |_, ns| sum += ns);
            assert_eq!(sum, now * now);
        }
    }
}
