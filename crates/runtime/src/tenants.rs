//! The tenants of a device: what each may have, what each used, and which sessions are whose.
//!
//! A session belongs to the tenant whose socket it came in by; without any configuration there is one, [`DEFAULT_TENANT`]. How much
//! of the device a tenant gets is the dispatcher's business ([`sched::dispatch::TenantParams`]); memory is decided here:
//!
//! - a **limit** is hard: an allocation beyond it fails with 207001, as a full device would, and nobody else notices;
//! - a **guarantee** is kept free: what others may take is what is free less what guarantees still lack. It is a number of bytes,
//!   not of contiguous ones, and takes effect as memory is freed where more than that is taken already.

use std::collections::BTreeMap;

use sched::{Nanos, TenantParams};
use serde::{Deserialize, Serialize};

use crate::core::Core;
use crate::tenant::Tenant;
use crate::usage::Usage;

/// The tenant of sessions that come in by the daemon's own socket.
pub const DEFAULT_TENANT: &str = "default";
/// Tenants of one device.
pub const TENANTS_MAX: usize = 256;
/// Bytes of a tenant's name.
pub const NAME_BYTES_MAX: usize = 64;
/// Largest weight: shares below a thousandth of a device are no shares.
pub const WEIGHT_MAX: u32 = 1000;
/// Largest window: more than the device's streams could fill.
pub const WINDOW_MAX: u32 = 65_536;

const NS_PER_S: u128 = 1_000_000_000;

/// What a tenant may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TenantConfig {
    /// Device memory that no other tenant can take, bytes.
    pub memory_guarantee_bytes: u64,
    /// Most device memory of all its processes, bytes; without it, what there is.
    pub memory_limit_bytes: Option<u64>,
    /// Part of the device relative to other tenants that want it.
    pub weight: u32,
    /// A tenant with a larger one goes first.
    pub priority: u8,
    /// Most operators on the device; 0 for no bound.
    pub window: u32,
}

impl Default for TenantConfig {
    fn default() -> Self {
        Self { memory_guarantee_bytes: 0, memory_limit_bytes: None, weight: 1, priority: 0, window: 0 }
    }
}

/// Why tenants stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TenantError {
    /// A name that is none.
    #[error(
        "{0:?} is no name for a tenant: 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.'"
    )]
    Name(String),
    /// No such tenant.
    #[error("no tenant is called {name:?}; there are: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// Who there is.
        known: String,
    },
    /// A figure that makes no sense.
    #[error("{field} = {value} is outside {range}")]
    OutOfRange {
        /// Field.
        field: &'static str,
        /// What was asked for.
        value: u64,
        /// What is allowed.
        range: String,
    },
    /// A tenant would be guaranteed more than it may have.
    #[error("{guarantee} bytes would be guaranteed to a tenant that may have {limit}")]
    AboveLimit {
        /// Guarantee.
        guarantee: u64,
        /// Its limit, or the device's memory.
        limit: u64,
    },
    /// More is guaranteed than there is.
    #[error("{wanted} bytes would be guaranteed to tenants, the device has {total}")]
    Guarantees {
        /// All guarantees together.
        wanted: u64,
        /// The device's memory.
        total: u64,
    },
    /// [`TENANTS_MAX`].
    #[error("there are {0} tenants, the most allowed; remove one")]
    TooMany(usize),
    /// Its processes are still there.
    #[error("tenant {name:?} has {sessions} processes attached; end them first")]
    Busy {
        /// Tenant.
        name: String,
        /// How many.
        sessions: usize,
    },
    /// [`DEFAULT_TENANT`] stays.
    #[error("tenant \"{DEFAULT_TENANT}\" stays: it is whoever comes in by the daemon's own socket")]
    Default,
}

impl TenantConfig {
    /// Checks every figure, for a device of `total` bytes.
    ///
    /// # Errors
    /// What is out of range, with the range.
    pub fn validate(&self, total: u64) -> Result<(), TenantError> {
        let within = |field, value: u64, least: u64, most: u64| {
            let range = format!("{least} to {most}");
            if (least..=most).contains(&value) { Ok(()) } else { Err(TenantError::OutOfRange { field, value, range }) }
        };
        within("weight", self.weight.into(), 1, WEIGHT_MAX.into())?;
        within("window", self.window.into(), 0, WINDOW_MAX.into())?;
        let (guarantee, limit) = (self.memory_guarantee_bytes, self.memory_limit_bytes.unwrap_or(total).min(total));
        if guarantee > limit { Err(TenantError::AboveLimit { guarantee, limit }) } else { Ok(()) }
    }

    fn params(&self) -> TenantParams {
        TenantParams { weight: self.weight, priority: self.priority, window: self.window }
    }
}

/// Checks a name. It becomes a directory and a label, so it is plain.
///
/// # Errors
/// It is none.
pub fn check_name(name: &str) -> Result<(), TenantError> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    let good = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.');
    if good { Ok(()) } else { Err(TenantError::Name(name.to_owned())) }
}

/// A tenant.
#[derive(Debug)]
pub(crate) struct Account {
    pub name: String,
    pub config: TenantConfig,
    pub usage: Usage,
    memory_byte_ns: u128,
    /// Its books are kept until its name or its place is wanted.
    removed: bool,
}

impl Account {
    fn new(name: &str, config: TenantConfig) -> Self {
        Self { name: name.to_owned(), config, usage: Usage::default(), memory_byte_ns: 0, removed: false }
    }
}

/// Every tenant by number; 0 is [`DEFAULT_TENANT`].
#[derive(Debug)]
pub(crate) struct Accounts {
    of: BTreeMap<u32, Account>,
    minted: u32,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { of: BTreeMap::from([(0, Account::new(DEFAULT_TENANT, TenantConfig::default()))]), minted: 0 }
    }
}

impl Accounts {
    /// Number of a tenant.
    ///
    /// # Errors
    /// There is none, and who there is.
    pub fn number(&self, name: &str) -> Result<u32, TenantError> {
        let found = self.live().find(|(_, a)| a.name == name).map(|(number, _)| number);
        found.ok_or_else(|| TenantError::Unknown {
            name: name.to_owned(),
            known: self.live().map(|(_, a)| a.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// A tenant that sessions have.
    pub fn get(&self, number: u32) -> Option<&Account> {
        self.of.get(&number)
    }

    /// Books of a tenant.
    pub fn usage(&mut self, number: u32) -> Option<&mut Usage> {
        self.of.get_mut(&number).map(|a| &mut a.usage)
    }

    fn live(&self) -> impl Iterator<Item = (u32, &Account)> {
        self.of.iter().filter(|(_, a)| !a.removed).map(|(&number, a)| (number, a))
    }

    /// A place for a new name; the one it had before, if it had one.
    fn place(&mut self, name: &str) -> Result<u32, TenantError> {
        if let Some((&number, _)) = self.of.iter().find(|(_, a)| a.name == name) {
            return Ok(number);
        }
        if self.of.len() >= TENANTS_MAX {
            let gone = self.of.iter().find(|(_, a)| a.removed).map(|(&number, _)| number);
            self.of.remove(&gone.ok_or(TenantError::TooMany(TENANTS_MAX))?);
        }
        self.minted += 1;
        Ok(self.minted)
    }
}

/// A tenant, as the admin API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct TenantSnapshot {
    /// Name.
    pub tenant: String,
    /// What it may have.
    pub config: TenantConfig,
    /// Its processes.
    pub sessions: usize,
    /// Device memory that they hold, bytes.
    pub memory_bytes: u64,
    /// Operators and copies of theirs on the device.
    pub in_flight: usize,
    /// Items of theirs queued, running or waited for.
    pub items: usize,
    /// What it used since the daemon started.
    pub usage: Usage,
}

/// The books of all tenants at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Books {
    /// Time in which the device held anything: what the tenants' device times sum up to, nanoseconds.
    pub busy_ns: Nanos,
    /// Each tenant that there was since the daemon started, by name.
    pub tenants: BTreeMap<String, Usage>,
}

impl Core {
    /// Makes a tenant, or changes what it may have from now on.
    ///
    /// # Errors
    /// Nothing is changed.
    pub fn set_tenant(&mut self, now: Nanos, name: &str, config: TenantConfig) -> Result<(), TenantError> {
        check_name(name)?;
        let total = self.device.memory().total;
        config.validate(total)?;
        let others: u64 =
            self.accounts.live().filter(|(_, a)| a.name != name).map(|(_, a)| a.config.memory_guarantee_bytes).sum();
        let wanted = others.saturating_add(config.memory_guarantee_bytes);
        if wanted > total {
            return Err(TenantError::Guarantees { wanted, total });
        }
        let number = self.accounts.place(name)?;
        self.advance(now);
        let account = self.accounts.of.entry(number).or_insert_with(|| Account::new(name, config));
        (account.config, account.removed) = (config, false);
        self.dispatcher.set_tenant(number, config.params());
        self.advance(now);
        Ok(())
    }

    /// Removes a tenant without processes. What it used stays in the books.
    ///
    /// # Errors
    /// It has processes, or there is none.
    pub fn remove_tenant(&mut self, now: Nanos, name: &str) -> Result<(), TenantError> {
        let number = self.accounts.number(name)?;
        if number == 0 {
            return Err(TenantError::Default);
        }
        let sessions = self.sessions_of(number).count();
        if sessions > 0 {
            return Err(TenantError::Busy { name: name.to_owned(), sessions });
        }
        self.advance(now);
        if let Some(account) = self.accounts.of.get_mut(&number) {
            account.removed = true;
        }
        self.dispatcher.remove_tenant(number);
        self.advance(now);
        Ok(())
    }

    fn sessions_of(&self, number: u32) -> impl Iterator<Item = &Tenant> {
        self.tenants.values().map(|(tenant, _)| tenant).filter(move |t| t.account == number)
    }

    /// Device memory that a tenant's processes hold.
    pub(crate) fn held_by(&self, number: u32) -> u64 {
        self.sessions_of(number).map(|t| t.space.held_bytes()).sum()
    }

    /// What a tenant may still allocate: within its limit, and without what is guaranteed to others. Also its limit.
    pub(crate) fn tenant_room(&self, number: u32) -> (u64, Option<u64>, u64) {
        let limit = self.accounts.get(number).and_then(|a| a.config.memory_limit_bytes);
        let left = limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.held_by(number)));
        let lacking = |(other, account): (u32, &Account)| match account.config.memory_guarantee_bytes {
            0 => 0,
            _ if other == number => 0,
            bytes => bytes.saturating_sub(self.held_by(other)),
        };
        let reserved: u64 = self.accounts.live().map(lacking).sum();
        (left, limit, reserved)
    }

    /// Books the memory that a session held until now.
    pub(crate) fn meter_memory(&mut self, session: u64) {
        let Self { tenants, accounts, time, .. } = self;
        if let Some((tenant, _)) = tenants.get_mut(&session) {
            meter(accounts, tenant, *time);
        }
    }

    /// The books up to the present.
    pub fn books(&mut self) -> Books {
        self.meter_device();
        let Self { tenants, accounts, time, .. } = self;
        for (tenant, _) in tenants.values_mut() {
            meter(accounts, tenant, *time);
        }
        let busy_ns = self.occupancy.snapshot(self.time).busy_ns;
        let tenants = self.accounts.of.values().map(|a| (a.name.clone(), a.usage)).collect();
        Books { busy_ns, tenants }
    }

    /// Books the device time that has passed.
    pub(crate) fn meter_device(&mut self) {
        let Self { meter, accounts, time, .. } = self;
        meter.advance(*time, |tenant, phase, class, ns| {
            if let Some(usage) = accounts.usage(tenant) {
                usage.device_ns[phase][class] += ns;
            }
        });
    }

    /// Tenants that there are.
    pub(crate) fn tenant_snapshots(&self) -> Vec<TenantSnapshot> {
        let shown = |(number, account): (u32, &Account)| TenantSnapshot {
            tenant: account.name.clone(),
            config: account.config,
            sessions: self.sessions_of(number).count(),
            memory_bytes: self.held_by(number),
            in_flight: self.sessions_of(number).map(|t| t.in_flight).sum(),
            items: self.sessions_of(number).map(|t| t.items).sum(),
            usage: account.usage,
        };
        self.accounts.live().map(shown).collect()
    }
}

/// Books what a session held since it was last looked at.
pub(crate) fn meter(accounts: &mut Accounts, tenant: &mut Tenant, now: Nanos) {
    let (held, since) = std::mem::replace(&mut tenant.metered, (tenant.space.held_bytes(), now));
    let byte_ns = u128::from(held) * u128::from(now.saturating_sub(since));
    if byte_ns > 0
        && let Some(account) = accounts.of.get_mut(&tenant.account)
    {
        account.memory_byte_ns += byte_ns;
        account.usage.memory_byte_seconds = (account.memory_byte_ns / NS_PER_S) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for name in ["default", "a", "team-7", "x_y.z", &"n".repeat(NAME_BYTES_MAX)] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "a/b", "a b", "<script>", "ä", &"n".repeat(NAME_BYTES_MAX + 1)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn figures_out_of_range_are_refused_with_the_range() {
        let good = TenantConfig::default();
        assert_eq!(good.validate(100), Ok(()));
        for (config, says) in [
            (TenantConfig { weight: 0, ..good }, "weight = 0 is outside 1 to 1000"),
            (TenantConfig { weight: 1001, ..good }, "1 to 1000"),
            (TenantConfig { window: WINDOW_MAX + 1, ..good }, "0 to 65536"),
            (
                TenantConfig { memory_guarantee_bytes: 101, ..good },
                "101 bytes would be guaranteed to a tenant that may have 100",
            ),
            (TenantConfig { memory_guarantee_bytes: 60, memory_limit_bytes: Some(50), ..good }, "may have 50"),
        ] {
            let error = config.validate(100).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
