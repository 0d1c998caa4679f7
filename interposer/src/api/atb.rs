//! `libatb.so`: what torch_npu's plugin calls by its C++ name. See [`crate::atb`].

use crate::abi::{In, Opaque, Out};
use crate::atb::layout::{
    ElewiseParam, LinearParam, PagedAttentionParam, ReshapeAndCacheParam, RmsNormParam, RopeParam, SelfAttentionParam,
    Tensor,
};
use crate::atb::object::{Context, Operation, end_context, end_operation, make_context, make_operation};
use crate::atb::translate::Kind;
use crate::entry::{status, value};
use crate::error::Failure;
use crate::log::log;

fn create<P: Copy>(function: &'static str, param: In<P>, kind: fn(P) -> Kind, operation: Out<*mut Operation>) -> i32 {
    status(function, || {
        let make = || make_operation(kind(param.get("opParam")?));
        operation.check("operation")?;
        operation.set("operation", std::ptr::null_mut())?;
        let made = make().inspect_err(|failure: &Failure| log!(Warn, "{function}: {failure}"))?;
        operation.set("operation", made)
    })
}

/// `atb::CreateOperation` of an `atb::infer::LinearParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer11LinearParamEEEiRKT_PPNS_9OperationE(
    opParam: In<LinearParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<LinearParam>", opParam, Kind::Linear, operation)
}

/// `atb::CreateOperation` of an `atb::infer::ElewiseParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer12ElewiseParamEEEiRKT_PPNS_9OperationE(
    opParam: In<ElewiseParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<ElewiseParam>", opParam, Kind::Elewise, operation)
}

/// `atb::CreateOperation` of an `atb::infer::RmsNormParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer12RmsNormParamEEEiRKT_PPNS_9OperationE(
    opParam: In<RmsNormParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<RmsNormParam>", opParam, Kind::RmsNorm, operation)
}

/// `atb::CreateOperation` of an `atb::infer::SelfAttentionParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer18SelfAttentionParamEEEiRKT_PPNS_9OperationE(
    opParam: In<SelfAttentionParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<SelfAttentionParam>", opParam, Kind::SelfAttention, operation)
}

/// `atb::CreateOperation` of an `atb::infer::PagedAttentionParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer19PagedAttentionParamEEEiRKT_PPNS_9OperationE(
    opParam: In<PagedAttentionParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<PagedAttentionParam>", opParam, Kind::PagedAttention, operation)
}

/// `atb::CreateOperation` of an `atb::infer::ReshapeAndCacheParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer20ReshapeAndCacheParamEEEiRKT_PPNS_9OperationE(
    opParam: In<ReshapeAndCacheParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<ReshapeAndCacheParam>", opParam, Kind::ReshapeAndCache, operation)
}

/// `atb::CreateOperation` of an `atb::infer::RopeParam`.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer9RopeParamEEEiRKT_PPNS_9OperationE(
    opParam: In<RopeParam>,
    operation: Out<*mut Operation>,
) -> i32 {
    create("atb::CreateOperation<RopeParam>", opParam, Kind::Rope, operation)
}

/// Of an `atb::infer::GroupTopkParam`: refused, and the operation is null.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb15CreateOperationINS_5infer14GroupTopkParamEEEiRKT_PPNS_9OperationE(
    _opParam: Opaque,
    operation: Out<*mut Operation>,
) -> i32 {
    let name = "atb::CreateOperation<GroupTopkParam>";
    status(name, || {
        operation.set("operation", std::ptr::null_mut())?;
        log!(Warn, "{name} is not supported; the call was refused");
        Err(Failure::unsupported("GroupTopkOperation is not supported"))
    })
}

/// Ends an operation.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb16DestroyOperationEPNS_9OperationE(operation: *mut Operation) -> i32 {
    status("atb::DestroyOperation", || {
        end_operation(operation);
        Ok(())
    })
}

/// Makes a context.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb13CreateContextEPPNS_7ContextE(context: Out<*mut Context>) -> i32 {
    status("atb::CreateContext", || {
        context.check("context")?;
        context.set("context", make_context())
    })
}

/// Ends a context.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb14DestroyContextEPNS_7ContextE(context: *mut Context) -> i32 {
    status("atb::DestroyContext", || {
        end_context(context);
        Ok(())
    })
}

/// Bytes of a tensor's elements.
#[unsafe(no_mangle)]
pub extern "C" fn _ZN3atb5Utils13GetTensorSizeERKNS_6TensorE(tensor: In<Tensor>) -> u64 {
    value("atb::Utils::GetTensorSize", 0, || Ok(tensor.get("tensor")?.bytes()))
}
