//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use device::DeviceSpec;
use runtime::Limits;
use sched::PolicyConfig;
use sched::policy::ConfigError;

/// Owns one NPU and lends it to client processes, operator by operator.
#[derive(Parser, Debug)]
#[command(name = "vnpu-daemon", version)]
pub struct Args {
    /// Unix socket that clients connect to; only this user may. A stale one is replaced.
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Device: `<soc>[:functional|:timing][:paced|:unpaced][:omega=F][:kappa_prefill=F][:kappa_decode=F][:hbm=GiB]`.
    #[arg(long, value_name = "SPEC")]
    pub device: DeviceSpec,
    /// Dispatch policy: passthrough, fifo, quota, priority, static-ratio, core-split or phase; parameters follow as in
    /// `phase:tpot_ms=40:gamma=0.2`.
    #[arg(long, default_value = "fifo")]
    policy: PolicyConfig,
    /// Time between tokens that decoding streams shall have, milliseconds.
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    tpot_ms: Option<f64>,
    /// Time to the first token that prefill streams shall have, milliseconds.
    #[arg(long, value_name = "MS", allow_negative_numbers = true)]
    ttft_ms: Option<f64>,
    /// Address of the admin API; without it there is none. Port 0 takes a free one, which the `ready` line names.
    #[arg(long, value_name = "HOST:PORT")]
    pub admin: Option<SocketAddr>,
    /// Keep a record of the last decisions from the start, in so many MiB: `vnpu record`, `vnpu trace` show them afterwards.
    #[arg(long, value_name = "MIB", num_args = 0..=1, default_missing_value = "64", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub record: Option<u32>,
    /// Tenants and what each may have: `[tenants.NAME]` with `memory_guarantee_bytes`, `memory_limit_bytes`, `weight`, `priority`,
    /// `window`. The admin API changes them while work runs.
    #[arg(long, value_name = "FILE")]
    pub tenants: Option<PathBuf>,
    /// Directory in which each tenant has a socket of its own, `DIR/NAME/npu.sock`: who comes in there is that tenant.
    #[arg(long, value_name = "DIR")]
    pub tenant_sockets: Option<PathBuf>,
    /// Keep what tenants use in this file; it goes on where it ended.
    #[arg(long, value_name = "FILE")]
    pub ledger: Option<PathBuf>,
    /// Which of the machine's devices this is; told to clients.
    #[arg(long, default_value_t = 0)]
    pub index: u32,
    /// Device memory that one client process may hold, bytes; without it, all of it.
    #[arg(long, value_name = "BYTES")]
    session_memory_bytes: Option<u64>,
}

impl Args {
    /// The policy to start with.
    ///
    /// # Errors
    /// A target out of range.
    pub fn policy(&self) -> Result<PolicyConfig, ConfigError> {
        let mut policy = self.policy;
        policy.tpot_ms = self.tpot_ms.unwrap_or(policy.tpot_ms);
        policy.ttft_ms = self.ttft_ms.unwrap_or(policy.ttft_ms);
        policy.validate()?;
        Ok(policy)
    }

    /// Bounds of sessions.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.session_memory_bytes_max = self.session_memory_bytes.unwrap_or(limits.session_memory_bytes_max);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        let required = ["vnpu-daemon", "--socket", "/run/npu0.sock", "--device", "Ascend910B3:timing:paced:omega=0.5"];
        Args::try_parse_from(required.iter().chain(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn targets_override_the_policy_that_was_named() {
        let args = parse(&["--policy", "phase", "--tpot-ms", "40", "--admin", "127.0.0.1:0"]).unwrap();
        let policy = args.policy().unwrap();
        assert_eq!((policy.tpot_ms, policy.ttft_ms), (40.0, PolicyConfig::default().ttft_ms));
        assert_eq!(args.limits(), Limits::default());
        let limited = parse(&["--session-memory-bytes", "4096"]).unwrap().limits();
        assert_eq!(limited.session_memory_bytes_max, 4096);
    }

    #[test]
    fn errors_list_what_is_valid() {
        let error = parse(&["--policy", "lottery"]).unwrap_err();
        for word in ["lottery", "passthrough", "fifo", "phase"] {
            assert!(error.contains(word), "{word} in {error}");
        }
        let error = parse(&["--ttft-ms", "-3"]).unwrap().policy().unwrap_err().to_string();
        assert!(error.contains("ttft_ms = -3"), "{error}");
        let error = parse(&["--admin", "nowhere"]).unwrap_err();
        assert!(error.contains("nowhere"), "{error}");
    }
}
