//! What the environment says: where the device is, and where hints come in.
//!
//! Read once a process (a forked child reads it again). A mistake is kept and becomes the error of the first call that
//! needs a device, because nothing earlier can report it.

use std::path::PathBuf;

/// Where devices come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Daemons, one socket a device.
    Daemon(Vec<PathBuf>),
    /// Devices hosted by this process, one spec each.
    Direct {
        /// As `device::DeviceSpec` parses them.
        specs: Vec<String>,
        /// Dispatch policy by name.
        policy: String,
    },
}

/// The environment, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where devices come from.
    pub mode: Mode,
    /// Where the hint listener binds; none without it.
    pub hints: Option<PathBuf>,
}

/// Most devices of one process: what CANN numbers on one host, doubled.
pub const DEVICES_MAX: usize = 32;

const NOT_CONFIGURED: &str = "no device is configured: neither VNPU_SOCKET nor VNPU_DEVICE is set; start the application with \
     `vnpu run --socket PATH -- command` or `vnpu run --direct Ascend910B3:functional -- command`";

impl Config {
    /// Reads the variables through `get`.
    ///
    /// # Errors
    /// A sentence that names the variable and says what to do.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let list = |name: &str| -> Vec<String> {
            let text = get(name).unwrap_or_default();
            text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
        };
        let (sockets, specs) = (list("VNPU_SOCKET"), list("VNPU_DEVICE"));
        let direct = match get("VNPU_MODE").as_deref() {
            Some("daemon") => false,
            Some("direct") => true,
            None | Some("") => sockets.is_empty() && !specs.is_empty(),
            Some(other) => return Err(format!("VNPU_MODE={other}: want daemon or direct")),
        };
        let mode = match direct {
            true if specs.is_empty() => {
                return Err("VNPU_MODE=direct needs VNPU_DEVICE, for example Ascend910B3:functional".to_owned());
            }
            true => Mode::Direct { specs, policy: get("VNPU_POLICY").unwrap_or_else(|| "passthrough".to_owned()) },
            false if sockets.is_empty() => return Err(NOT_CONFIGURED.to_owned()),
            false => Mode::Daemon(sockets.into_iter().map(PathBuf::from).collect()),
        };
        let config = Self { mode, hints: get("VNPU_HINTS").filter(|s| !s.is_empty()).map(PathBuf::from) };
        match config.device_count() {
            n if n > DEVICES_MAX => Err(format!("{n} devices are configured; at most {DEVICES_MAX} are supported")),
            _ => Ok(config),
        }
    }

    /// Devices of this process.
    pub fn device_count(&self) -> usize {
        match &self.mode {
            Mode::Daemon(sockets) => sockets.len(),
            Mode::Direct { specs, .. } => specs.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn mode_follows_from_what_is_set() {
        let daemon = read(&[("VNPU_SOCKET", "/run/a.sock, /run/b.sock"), ("VNPU_DEVICE", "x")]).unwrap();
        assert_eq!(daemon.mode, Mode::Daemon(vec!["/run/a.sock".into(), "/run/b.sock".into()]));
        assert_eq!((daemon.device_count(), daemon.hints), (2, None));
        let direct = read(&[("VNPU_DEVICE", "Ascend910B3:timing"), ("VNPU_HINTS", "/run/h")]).unwrap();
        assert_eq!(
            direct.mode,
            Mode::Direct { specs: vec!["Ascend910B3:timing".into()], policy: "passthrough".into() }
        );
        assert_eq!(direct.hints, Some("/run/h".into()));
        let explicit = read(&[("VNPU_MODE", "direct"), ("VNPU_SOCKET", "/s"), ("VNPU_DEVICE", "a,b")]).unwrap();
        assert_eq!(explicit.device_count(), 2);
    }

    #[test]
    fn mistakes_say_what_to_do() {
        let many = vec!["/s"; DEVICES_MAX + 1].join(",");
        for (vars, part) in [
            (&[][..], "vnpu run --socket PATH"),
            (&[("VNPU_SOCKET", " , ")], "VNPU_SOCKET"),
            (&[("VNPU_MODE", "daemon"), ("VNPU_DEVICE", "x")], "VNPU_SOCKET"),
            (&[("VNPU_MODE", "direct")], "VNPU_DEVICE"),
            (&[("VNPU_MODE", "turbo")], "want daemon or direct"),
            (&[("VNPU_SOCKET", &many)], "at most 32"),
        ] {
            let error = read(vars).unwrap_err();
            assert!(error.contains(part), "{vars:?}: {error}");
        }
    }
}
