//! Which of several engines: the one that has the prompt's beginning in its cache or the client's session, unless it has
//! much more to do than the others; else the less loaded of two drawn at random.
//!
//! Two random choices instead of the least loaded: between two looks at the load, many requests would follow the same
//! least loaded engine.

use rand::Rng;

use crate::EngineIndex;

/// How much more than the mean load an engine may have and still be chosen for what it remembers. 1.25 is the usual bound
/// of consistent hashing with bounded loads.
pub const AFFINITY_LOAD_FACTOR: f64 = 1.25;
/// Tokens by which an engine may always be ahead of the mean: at low load, the cache is worth more than the queue.
const AFFINITY_SLACK_TOKENS: f64 = 4096.0;

/// An engine that could take a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Engine.
    pub engine: EngineIndex,
    /// Work it has taken on and not done.
    pub outstanding_tokens: u64,
}

/// Picks one; `preferred` engines in falling order of preference. `None` without candidates.
pub fn choose(candidates: &[Candidate], preferred: &[EngineIndex], random: &mut impl Rng) -> Option<EngineIndex> {
    let (first, rest) = candidates.split_first()?;
    if rest.is_empty() {
        return Some(first.engine);
    }
    let mean = candidates.iter().map(|c| c.outstanding_tokens as f64).sum::<f64>() / candidates.len() as f64;
    let most = mean * AFFINITY_LOAD_FACTOR + AFFINITY_SLACK_TOKENS;
    let known = preferred.iter().filter_map(|&p| candidates.iter().find(|c| c.engine == p));
    if let Some(found) = known.into_iter().find(|c| c.outstanding_tokens as f64 <= most) {
        return Some(found.engine);
    }
    let a = random.random_range(0..candidates.len());
    let b = (a + random.random_range(1..candidates.len())) % candidates.len();
    let less = if candidates[b].outstanding_tokens < candidates[a].outstanding_tokens { b } else { a };
    Some(candidates[less].engine)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    fn load(tokens: &[u64]) -> Vec<Candidate> {
        let each = tokens.iter().enumerate();
        each.map(|(engine, &outstanding_tokens)| Candidate { engine, outstanding_tokens }).collect()
    }

    #[test]
    fn affinity_holds_up_to_the_load_cap() {
        let mut random = SmallRng::seed_from_u64(1);
        for (loads, preferred, want) in [
            (&[0, 0, 0][..], &[2][..], Some(2)),
            (&[0, 0, 5000], &[2], Some(2)),
            (&[0, 0, 900_000], &[2, 1], Some(1)),
            (&[7], &[], Some(0)),
            (&[], &[0], None),
        ] {
            assert_eq!(choose(&load(loads), preferred, &mut random), want, "{loads:?} {preferred:?}");
        }
        let overloaded = choose(&load(&[0, 0, 900_000]), &[2], &mut random);
        assert!(overloaded < Some(2), "{overloaded:?}");
    }

    #[test]
    fn most_loaded_of_three_is_never_drawn() {
        let mut random = SmallRng::seed_from_u64(2);
        let mut drawn = [0; 3];
        for _ in 0..1000 {
            drawn[choose(&load(&[100_000, 50_000, 10_000]), &[], &mut random).unwrap()] += 1;
        }
        assert_eq!(drawn[0], 0);
        assert!(drawn[2] > drawn[1] && drawn[1] > 200, "{drawn:?}");
    }
}
