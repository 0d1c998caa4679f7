//! Who asks: API keys to tenants.
//!
//! Only hashes of keys are kept. A key is looked up by its hash, so how long the look-up takes says nothing about the keys
//! that exist. Keys are long and random (`gateway key` makes one), which is why a plain hash is enough.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use admission::{QuotaMeter, TENANTS_MAX, TenantIndex};
use anyhow::ensure;
use http::HeaderMap;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::config::{Config, Tier};
use crate::mistakes::Mistake;

/// A tenant of the gateway.
#[derive(Debug)]
pub struct Tenant {
    /// Position in admission's table.
    pub index: TenantIndex,
    /// Name in metrics, logs and hints; empty for everyone without a key.
    pub name: String,
    /// What it may have.
    pub tier: Tier,
    /// What it has used, under whatever configuration.
    pub meter: Arc<Mutex<QuotaMeter>>,
}

/// All tenants of a configuration.
#[derive(Debug, Default)]
pub struct Tenants {
    by_key: HashMap<[u8; 32], usize>,
    tenants: Vec<Tenant>,
    /// Every tenant so far: who comes back has its old place and what it had used.
    known: HashMap<String, (TenantIndex, Arc<Mutex<QuotaMeter>>)>,
}

impl Tenants {
    /// Those of a configuration, one for everyone if it names none; `before` had those known so far.
    ///
    /// # Errors
    /// If there have been too many, or a key's file cannot be used.
    pub fn of_config(config: &Config, before: &Self, now_us: u64) -> anyhow::Result<Self> {
        let mut tenants = Self { known: before.known.clone(), ..Self::default() };
        if config.tenants.is_empty() {
            let everyone = config.tiers.get("default").copied().unwrap_or_default();
            tenants.add("", everyone, now_us)?;
        }
        for (place, given) in config.tenants.iter().enumerate() {
            tenants.by_key.extend(given.key_sha256.iter().filter_map(|hex| Some((unhex(hex)?, place))));
            for (k, file) in given.key_files.iter().enumerate() {
                let wrong = |what: String| {
                    let what = format!("tenant `{}`: {what}", given.name);
                    config.wrong(&Mistake::new(&[&"tenants", &place, &"key_files", &k], what))
                };
                let key = key_in(file).map_err(wrong)?;
                if tenants.by_key.insert(Sha256::digest(key).into(), place).is_some() {
                    return Err(wrong(format!("the key in {} is used twice", file.display())));
                }
            }
            tenants.add(&given.name, config.tier(given), now_us)?;
        }
        Ok(tenants)
    }

    fn add(&mut self, name: &str, tier: Tier, now_us: u64) -> anyhow::Result<()> {
        let next = self.known.len();
        let place = self.known.entry(name.to_owned());
        let (index, meter) =
            place.or_insert_with(|| (next, Arc::new(Mutex::new(QuotaMeter::new(tier.quota(), now_us)))));
        ensure!(*index < TENANTS_MAX, "{TENANTS_MAX} tenants since the start; the gateway must start again for more");
        self.tenants.push(Tenant { index: *index, name: name.to_owned(), tier, meter: Arc::clone(meter) });
        Ok(())
    }

    /// They are those in force: limits on what they used count from now on.
    pub fn take_over(&self, now_us: u64) {
        for tenant in &self.tenants {
            tenant.meter.lock().set_quota(tenant.tier.quota(), now_us);
        }
    }

    /// Whether clients need a key.
    pub fn keyed(&self) -> bool {
        !self.by_key.is_empty() || self.tenants.len() > 1 || !self.tenants[0].name.is_empty()
    }

    /// Who sent these headers; `None` if a key is needed and there is no valid one.
    pub fn of(&self, headers: &HeaderMap) -> Option<&Tenant> {
        if !self.keyed() {
            return self.tenants.first();
        }
        let value = headers.get("authorization")?.as_bytes();
        let (scheme, key) = value.split_at_checked(7)?;
        if !scheme.eq_ignore_ascii_case(b"bearer ") {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        self.tenants.get(*self.by_key.get(&hash)?)
    }

    /// All of them.
    pub fn all(&self) -> &[Tenant] {
        &self.tenants
    }
}

/// The key that a file holds.
///
/// # Errors
/// If it holds none.
pub fn key_in(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
    match text.trim() {
        "" => Err(format!("{} is empty; print a key with `gateway key`", file.display())),
        key => Ok(key.to_owned()),
    }
}

/// Whether an `authorization` header has the key of one of these hashes. What is compared are hashes, so the time it takes tells
/// nothing of a key.
pub fn is_key_of(authorization: &[u8], key_sha256: &[String]) -> bool {
    let Some((scheme, key)) = authorization.split_at_checked(7) else { return false };
    let hash: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
    scheme.eq_ignore_ascii_case(b"bearer ") && key_sha256.iter().any(|hex| unhex(hex) == Some(hash))
}

fn unhex(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    for (byte, digits) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A new key and its hash.
///
/// # Errors
/// If the system gives no randomness.
pub fn new_key() -> anyhow::Result<(String, String)> {
    use rand::TryRngCore;
    let mut secret = [0; 32];
    rand::rngs::OsRng.try_fill_bytes(&mut secret)?;
    let key = format!("sk-{}", hex(&secret));
    let hash = hex(&Sha256::digest(key.as_bytes()));
    Ok((key, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_known_by_their_hash_only() {
        let (key, hash) = new_key().unwrap();
        assert_eq!((key.len(), hash.len()), (67, 64));
        let text = format!("[[engines]]\naddress = \"a:1\"\n[[tenants]]\nname = \"blue\"\nkey_sha256 = [\"{hash}\"]\n");
        let tenants = Tenants::of_config(&Config::parse(&text).unwrap(), &Tenants::default(), 0).unwrap();
        assert!(!format!("{tenants:?}").contains(&key));
        let of = |value: &str| {
            let headers = [(http::header::AUTHORIZATION, value.parse().unwrap())].into_iter().collect();
            tenants.of(&headers).map(|t| t.name.clone())
        };
        assert_eq!(of(&format!("Bearer {key}")).as_deref(), Some("blue"));
        assert_eq!(of(&format!("bearer  {key}")).as_deref(), Some("blue"));
        for wrong in [format!("Basic {key}"), format!("Bearer {hash}"), "Bearer".into(), format!("Bearer {key}x")] {
            assert_eq!(of(&wrong), None, "{wrong}");
        }
        assert!(tenants.of(&HeaderMap::new()).is_none());
        // The same key in a file: known, but not twice.
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let text = format!("{text}[[tenants]]\nname = \"green\"\nkey_files = [{:?}]\n", file);
        let filed = |key: &str| {
            std::fs::write(&file, key).unwrap();
            Tenants::of_config(&Config::parse(&text).unwrap(), &Tenants::default(), 0)
        };
        let headers = [(http::header::AUTHORIZATION, "Bearer other".parse().unwrap())].into_iter().collect();
        assert_eq!(filed("other\n").unwrap().of(&headers).unwrap().name, "green");
        for (wrong, words) in [(key.as_str(), "used twice"), (" \n", "gateway key")] {
            let error = format!("{:#}", filed(wrong).unwrap_err());
            assert!(error.contains(words) && error.contains("line 8"), "{error}");
        }
        let open = Tenants::of_config(&Config::sidecar(&["a:1".into()]), &Tenants::default(), 0).unwrap();
        assert!(open.of(&HeaderMap::new()).is_some());
    }
}
