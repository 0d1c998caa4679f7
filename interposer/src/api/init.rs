//! Initialisation, versions, error texts.

use std::ffi::c_char;

use acl_abi::values as acl;

use crate::abi::{Out, Text};
use crate::entry::{status, value};
use crate::error::{Failure, last_code, take_message};
use crate::log::log;
use crate::process::process;

/// CANN release that this library presents itself as. torch_npu compares it to decide which calls it may make: from 9.0 on it takes
/// no norm to its old operator path, from 9.1 on no format cast.
pub const CANN_VERSION: &str = "9.1.0";
/// Largest configuration file read.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// Checks the configuration of this process; connects to nothing. Of the file only `defaultDevice` is used.
#[unsafe(no_mangle)]
pub extern "C" fn aclInit(configPath: Text) -> i32 {
    status("aclInit", || {
        let default_device = match configPath.lossy().as_deref() {
            None | Some("") => None,
            Some(path) => default_device(path)?,
        };
        process().initialise(default_device)
    })
}

/// The `defaultDevice.default_device` of a configuration file.
fn default_device(path: &str) -> Result<Option<u32>, Failure> {
    let unreadable =
        |why: String| Failure::new(acl::ACL_ERROR_INVALID_FILE, format!("parameter configPath: {path}: {why}"));
    let size = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?.len();
    if size > CONFIG_BYTES_MAX {
        return Err(unreadable(format!("{size} bytes, at most {CONFIG_BYTES_MAX} are read")));
    }
    let text = std::fs::read_to_string(path).map_err(|e| unreadable(e.to_string()))?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let parsed: serde_json::Value = serde_json::from_str(&text)
        .map_err(|e| Failure::new(acl::ACL_ERROR_PARSE_FILE, format!("parameter configPath: {path}: {e}")))?;
    let device = &parsed["defaultDevice"]["default_device"];
    Ok(device.as_str().and_then(|s| s.parse().ok()).or_else(|| device.as_u64().and_then(|n| u32::try_from(n).ok())))
}

/// Closes the sessions of this process.
#[unsafe(no_mangle)]
pub extern "C" fn aclFinalize() -> i32 {
    status("aclFinalize", || process().finalise())
}

/// Nothing to set up; the configuration is `aclInit`'s.
#[unsafe(no_mangle)]
pub extern "C" fn aclnnInit(_configPath: Text) -> i32 {
    status("aclnnInit", || process().config().map(|_| ()))
}

/// Nothing to give back.
#[unsafe(no_mangle)]
pub extern "C" fn aclnnFinalize() -> i32 {
    status("aclnnFinalize", || Ok(()))
}

/// Text of this thread's last failure, once; never null.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetRecentErrMsg() -> *const c_char {
    value("aclGetRecentErrMsg", c"".as_ptr(), || Ok(take_message()))
}

/// Code of this thread's last failure, which is then forgotten.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetLastError(_level: i32) -> i32 {
    last_code(true)
}

/// Code of this thread's last failure.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtPeekAtLastError(_level: i32) -> i32 {
    last_code(false)
}

/// `aclCANNPackageVersion`.
#[repr(C)]
#[allow(missing_docs)]
pub struct PackageVersion {
    pub version: [u8; acl::ACL_PKG_VERSION_MAX_SIZE as usize],
    pub major: [u8; acl::ACL_PKG_VERSION_PARTS_MAX_SIZE as usize],
    pub minor: [u8; acl::ACL_PKG_VERSION_PARTS_MAX_SIZE as usize],
    pub release: [u8; acl::ACL_PKG_VERSION_PARTS_MAX_SIZE as usize],
    pub patch: [u8; acl::ACL_PKG_VERSION_PARTS_MAX_SIZE as usize],
    pub reserved: [u8; acl::ACL_PKG_VERSION_MAX_SIZE as usize],
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let len = text.len().min(N - 1);
    out[..len].copy_from_slice(&text.as_bytes()[..len]);
    out
}

/// Version of a package. There is no driver, so it has none.
#[unsafe(no_mangle)]
pub extern "C" fn aclsysGetCANNVersion(name: i32, version: Out<PackageVersion>) -> i32 {
    status("aclsysGetCANNVersion", || {
        version.check("version")?;
        match name {
            acl::ACL_PKG_NAME_DRIVER => return Err(Failure::unsupported("a virtual NPU has no driver")),
            acl::ACL_PKG_NAME_CANN..=acl::ACL_PKG_NAME_OPP_KERNEL => {}
            _ => return Err(Failure::invalid(format!("parameter name: {name} is no aclCANNPackageName"))),
        }
        let mut parts = CANN_VERSION.split('.').chain(std::iter::repeat("0"));
        let mut part = || padded(parts.next().unwrap_or("0"));
        let value = PackageVersion {
            version: padded(CANN_VERSION),
            major: part(),
            minor: part(),
            release: part(),
            patch: part(),
            reserved: [0; acl::ACL_PKG_VERSION_MAX_SIZE as usize],
        };
        version.set("version", value)
    })
}

/// True for a package that exists here.
fn is_package(name: &str) -> bool {
    ["cann", "runtime", "compiler", "hccl", "toolkit", "opp", "opp_kernel"]
        .contains(&name.to_ascii_lowercase().as_str())
}

/// Version of a package by name.
#[unsafe(no_mangle)]
pub extern "C" fn aclsysGetVersionStr(pkgName: *mut c_char, versionStr: Out<c_char>) -> i32 {
    status("aclsysGetVersionStr", || {
        let name = Text::from(pkgName);
        let name = name.lossy().ok_or_else(|| Failure::null("pkgName"))?;
        if !is_package(&name) {
            return Err(Failure::unsupported(format!("parameter pkgName: no package {name}")));
        }
        versionStr.set_text("versionStr", CANN_VERSION, acl::ACL_PKG_VERSION_MAX_SIZE as usize)
    })
}

/// Version of a package as one number, `major·10⁷ + minor·10⁵ + release·10³`.
#[unsafe(no_mangle)]
pub extern "C" fn aclsysGetVersionNum(pkgName: *mut c_char, versionNum: Out<i32>) -> i32 {
    status("aclsysGetVersionNum", || {
        let name = Text::from(pkgName);
        let name = name.lossy().ok_or_else(|| Failure::null("pkgName"))?;
        if !is_package(&name) {
            return Err(Failure::unsupported(format!("parameter pkgName: no package {name}")));
        }
        let parts = CANN_VERSION.split('.').map(|p| p.parse::<i32>().unwrap_or(0));
        let number = parts.zip([10_000_000, 100_000, 1_000]).map(|(p, weight)| p * weight).sum();
        versionNum.set("versionNum", number)
    })
}

/// Version of the interface.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetVersion(majorVersion: Out<i32>, minorVersion: Out<i32>, patchVersion: Out<i32>) -> i32 {
    status("aclrtGetVersion", || {
        majorVersion.set("majorVersion", acl::ACL_MAJOR_VERSION)?;
        minorVersion.set("minorVersion", acl::ACL_MINOR_VERSION)?;
        patchVersion.set("patchVersion", acl::ACL_PATCH_VERSION)
    })
}

/// A line for the log. The variable arguments of the C function are not formatted: the callee cannot know their types.
#[unsafe(no_mangle)]
pub extern "C" fn aclAppLog(logLevel: i32, func: Text, _file: Text, line: u32, fmt: Text) {
    value("aclAppLog", (), || {
        let (func, fmt) = (func.lossy().unwrap_or_default(), fmt.lossy().unwrap_or_default());
        match logLevel {
            acl::ACL_ERROR => log!(Info, "application error, {func}:{line}: {fmt}"),
            _ => log!(Debug, "application, {func}:{line}: {fmt}"),
        }
        Ok(())
    });
}

const _: () = assert!(size_of::<PackageVersion>() == 512);
