//! Options and modes: kept and given back ([`crate::settings`]).

use std::ffi::c_char;

use acl_abi::values as acl;

use crate::abi::{Opaque, Out, Text};
use crate::entry::{status, value};
use crate::error::Failure;
use crate::process::process;

/// Kept. Results overflow to infinity and NaN in either mode.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetDeviceSatMode(mode: i32) -> i32 {
    status("aclrtSetDeviceSatMode", || match mode {
        acl::ACL_RT_OVERFLOW_MODE_SATURATION..=acl::ACL_RT_OVERFLOW_MODE_INFNAN => {
            process().settings.set_saturation(mode);
            Ok(())
        }
        other => Err(Failure::invalid(format!("parameter mode: {other} is no aclrtFloatOverflowMode"))),
    })
}

/// The mode that was set.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetDeviceSatMode(mode: Out<i32>) -> i32 {
    status("aclrtGetDeviceSatMode", || mode.set("mode", process().settings.saturation()))
}

/// Kept. Operators are deterministic either way.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetSysParamOpt(opt: i32, value: i64) -> i32 {
    status("aclrtSetSysParamOpt", || {
        process().settings.set_system(opt, value);
        Ok(())
    })
}

/// As [`aclrtSetSysParamOpt`]: contexts share them.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCtxSetSysParamOpt(opt: i32, value: i64) -> i32 {
    status("aclrtCtxSetSysParamOpt", || {
        process().settings.set_system(opt, value);
        Ok(())
    })
}

fn system(opt: i32, out: Out<i64>) -> Result<(), Failure> {
    out.check("value")?;
    let kept = process().settings.system(opt);
    let text = || format!("parameter opt: {opt} was not set");
    out.set("value", kept.ok_or_else(|| Failure::new(acl::ACL_ERROR_RT_SYSPARAMOPT_NOT_SET, text()))?)
}

/// The value that was set; 0, which every option begins with, before. Clients ask for it without ever having set one.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetSysParamOpt(opt: i32, value: Out<i64>) -> i32 {
    status("aclrtGetSysParamOpt", || value.set("value", process().settings.system(opt).unwrap_or(0)))
}

/// The value that was set; an error before: a context has none of its own until then.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtCtxGetSysParamOpt(opt: i32, value: Out<i64>) -> i32 {
    status("aclrtCtxGetSysParamOpt", || system(opt, value))
}

/// Kept. Operators do not hang here, so none is ever ended for its time.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetOpExecuteTimeOut(timeout: u32) -> i32 {
    status("aclrtSetOpExecuteTimeOut", || {
        process().settings.set_timeout_us(u64::from(timeout) * 1_000_000);
        Ok(())
    })
}

/// As [`aclrtSetOpExecuteTimeOut`], in milliseconds.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetOpExecuteTimeOutWithMs(timeout: u32) -> i32 {
    status("aclrtSetOpExecuteTimeOutWithMs", || {
        process().settings.set_timeout_us(u64::from(timeout) * 1_000);
        Ok(())
    })
}

/// As [`aclrtSetOpExecuteTimeOut`], in microseconds; answers what it was set to.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetOpExecuteTimeOutV2(timeout: u64, actualTimeout: Out<u64>) -> i32 {
    status("aclrtSetOpExecuteTimeOutV2", || {
        process().settings.set_timeout_us(timeout);
        actualTimeout.set_if_wanted(timeout);
        Ok(())
    })
}

/// The time-out that was set, in milliseconds.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetOpExecuteTimeout(timeoutMs: Out<u32>) -> i32 {
    status("aclrtGetOpExecuteTimeout", || {
        let ms = process().settings.timeout_us() / 1_000;
        timeoutMs.set("timeoutMs", u32::try_from(ms).unwrap_or(u32::MAX))
    })
}

/// Accepted: waits of one stream for another end when the other does.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetOpWaitTimeout(_timeout: u32) -> i32 {
    status("aclrtSetOpWaitTimeout", || Ok(()))
}

/// Accepted for a live stream. A failed operator does not stop its stream in either mode; the failure is reported by the next
/// synchronising call.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetStreamFailureMode(stream: Opaque, mode: u64) -> i32 {
    status("aclrtSetStreamFailureMode", || {
        process().stream(stream)?;
        match i32::try_from(mode) {
            Ok(acl::ACL_CONTINUE_ON_FAILURE..=acl::ACL_STOP_ON_FAILURE) => Ok(()),
            _ => Err(Failure::invalid(format!("parameter mode: {mode} is no failure mode"))),
        }
    })
}

/// Accepted for a live stream: results overflow to infinity and NaN, which needs no switch.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtSetStreamOverflowSwitch(stream: Opaque, _flag: u32) -> i32 {
    status("aclrtSetStreamOverflowSwitch", || process().stream(stream).map(|_| ()))
}

/// Overflow detection is off.
#[unsafe(no_mangle)]
pub extern "C" fn aclrtGetStreamOverflowSwitch(stream: Opaque, flag: Out<u32>) -> i32 {
    status("aclrtGetStreamOverflowSwitch", || {
        process().stream(stream)?;
        flag.set("flag", 0)
    })
}

/// Kept: there is no operator compiler.
#[unsafe(no_mangle)]
pub extern "C" fn aclSetCompileopt(opt: i32, value: Text) -> i32 {
    status("aclSetCompileopt", || {
        let value = value.lossy().ok_or_else(|| Failure::null("value"))?;
        process().settings.set_compile(opt, &value);
        Ok(())
    })
}

/// The value that was set; just-in-time compilation is `disable` unless set.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetCompileopt(opt: i32, value: Out<c_char>, length: usize) -> i32 {
    status("aclGetCompileopt", || {
        let text = process().settings.compile(opt);
        let unset = || Failure::invalid(format!("parameter opt: {opt} was not set"));
        value.set_text("value", &text.ok_or_else(unset)?, length)
    })
}

/// Bytes of the value with its NUL; 0 if it was not set.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetCompileoptSize(opt: i32) -> usize {
    value("aclGetCompileoptSize", 0, || Ok(process().settings.compile(opt).map_or(0, |v| v.len() + 1)))
}

/// Infinities, NaN and bfloat16 are there; just-in-time compilation is not.
#[unsafe(no_mangle)]
pub extern "C" fn aclGetCannAttribute(cannAttr: i32, value: Out<i32>) -> i32 {
    status("aclGetCannAttribute", || match cannAttr {
        acl::ACL_CANN_ATTR_INF_NAN | acl::ACL_CANN_ATTR_BF16 => value.set("value", 1),
        acl::ACL_CANN_ATTR_JIT_COMPILE => value.set("value", 0),
        other => Err(Failure::invalid(format!("parameter cannAttr: {other} is no aclCannAttr"))),
    })
}
