//! A whole dispatcher as bytes and back: where a decision record begins.
//!
//! Everything that a later decision or counter depends on is saved, the policy's state included, so that a record can begin
//! under load and the recorded dispatcher never notices. Tables are saved in order of key: equal dispatchers give equal bytes.
//! The bytes mean nothing to another build ([`super::record::BUILD`]).

use super::events::Events;
use super::flags::Flags;
use super::stats::Stats;
use super::stream::Stream;
use super::tenancy::Tenancy;
use super::{Dispatcher, Fence, Limits, Session, StreamKey, Token};
use crate::policy::learn::Learner;
use crate::policy::{self, PolicyConfig};
use crate::{Nanos, dispatch};
use foldhash::HashMap;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;

/// A table in order of key.
pub(crate) fn sorted<K: Serialize + Ord, V: Serialize, S: Serializer>(
    map: &HashMap<K, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().collect::<BTreeMap<_, _>>())
}

type Tables = (HashMap<u64, Session>, HashMap<StreamKey, usize>, HashMap<Token, (usize, u64)>, HashMap<u64, Fence>);
type Lists = (Vec<Option<Stream>>, Vec<usize>, Vec<usize>, Vec<usize>, Vec<Token>, Vec<usize>, Vec<usize>);
type Objects = (Events, Flags, Stats, Option<Learner>, Vec<u8>, Tenancy);
type Numbers = (Nanos, u64, u64, usize, Option<Nanos>);

impl Dispatcher {
    pub(super) fn save(&self) -> Vec<u8> {
        fn ordered<K: Ord, V>(map: &HashMap<K, V>) -> BTreeMap<&K, &V> {
            map.iter().collect()
        }
        let Self { sessions, keys, flying, fences, streams, free, ready, awaited, done, pressed, work, .. } = self;
        let tables = (ordered(sessions), ordered(keys), ordered(flying), ordered(fences));
        let lists = (streams, free, ready, awaited, done, pressed, work);
        let objects = (&self.events, &self.flags, &self.stats, &self.meter, self.policy.save(), &self.tenancy);
        let numbers = (self.now, self.seq, self.fences_minted, self.items, self.wake);
        // Fails for collections of unknown length only, of which there are none.
        postcard::to_allocvec(&(&self.config, &self.limits, tables, lists, objects, numbers)).unwrap_or_default()
    }

    /// The dispatcher that [`Dispatcher::save`] saved, without its recording.
    pub(super) fn restore(bytes: &[u8]) -> postcard::Result<Self> {
        let (config, limits, tables, lists, objects, numbers) =
            postcard::from_bytes::<(PolicyConfig, Limits, Tables, Lists, Objects, Numbers)>(bytes)?;
        let (sessions, keys, flying, fences) = tables;
        let (streams, free, ready, awaited, done, pressed, work) = lists;
        let (events, flags, stats, meter, state, tenancy) = objects;
        let (now, seq, fences_minted, items, wake) = numbers;
        let policy = policy::restore(&config, &state)?;
        Ok(Self {
            policy,
            meter,
            sessions,
            keys,
            flying,
            fences,
            streams,
            free,
            ready,
            awaited,
            done,
            pressed,
            work,
            events,
            flags,
            stats,
            tenancy,
            now,
            seq,
            fences_minted,
            items,
            wake,
            ..dispatch::Dispatcher::new(config, limits)
        })
    }
}
