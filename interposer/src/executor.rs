//! Both phases of an operator call.
//!
//! Phase one copies every argument out of the caller's objects into a thread's scratch [`OpCall`], encodes it once into the
//! executor's buffer and answers *workspace 0*: the daemon owns workspace memory. Phase two puts the stream in front of
//! the encoded body and posts one record. No round trip in either; an error of the operator itself surfaces at the next
//! synchronising call.
//!
//! Cost: phase one, a table lock per object argument and one per executor, about 150 bytes written; phase two, one table
//! lock each for executor and stream, one copy of the body, one publish. Buffers are reused: no allocation once grown.
//!
//! An operator whose output has a data-dependent size (`acl_abi::extent`) is the exception: its phase two waits for the answer
//! and gives the caller's output tensor the size that was found, for `aclGetViewShape`. One round trip; the stream is settled
//! afterwards, so the synchronisation that callers do next costs none. An output that was destroyed meanwhile is left alone.
//! A device that computes nothing finds no size: the tensor keeps the caller's upper bound.
//!
//! `aclnnTransMatmulWeight` lays weights out anew where they are: phase one gives the caller's tensor its new format, and phase two
//! on the default stream waits, because callers read the weights on other streams next.
//!
//! An executor ends with phase two, unless `aclSetAclOpExecutorRepeatable` was called on it.

use std::cell::RefCell;
use std::ffi::c_void;

use acl_abi::{Arg, Kind, OpCall, OpId, extent, ops};

use crate::abi::{Out, Text};
use crate::entry;
use crate::error::{ACLNN_PARAM_INVALID, ACLNN_PARAM_NULL, Failure};
use crate::fetch::Span;
use crate::objects::{Element, Objects, Tensor};
use crate::process::process;
use crate::stream::Stream;

/// A captured call.
#[derive(Default)]
pub struct Executor {
    op: Option<OpId>,
    /// Operator body as `wire` encodes it.
    body: Vec<u8>,
    /// Outlives phase two.
    pub repeatable: bool,
    /// Its first output, if that is small.
    output: Option<Span>,
    /// Outputs of a data-dependent size.
    extents: Vec<Growing>,
}

/// An output tensor whose size the operator decides.
#[derive(Clone, Copy)]
struct Growing {
    /// The caller's handle, checked again when the size is known.
    tensor: Element,
    /// Dimension.
    axis: usize,
}

thread_local! {
    /// The call that phase one collects.
    static SCRATCH: RefCell<OpCall> = RefCell::new(OpCall::new(ops::aclnnAdd));
}

/// Collects the arguments of one call in signature order.
pub struct Capture<'a> {
    objects: &'a Objects,
    call: &'a mut OpCall,
    /// Handles of the outputs that `acl_abi::extent` lists, with their place there.
    outputs: Vec<(usize, Element)>,
}

impl Capture<'_> {
    fn parameter(&self) -> &'static str {
        self.call.op.signature().params[self.call.args.len()].name
    }

    /// An argument that needs no object.
    pub fn push(&mut self, arg: Arg) {
        self.call.args.push(arg);
    }

    /// `const aclTensor *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live tensor.
    pub fn tensor(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let desc = self.objects.tensors.with(handle, self.parameter(), |t| t.desc)?;
        self.call.push_tensor(Some(desc));
        Ok(())
    }

    /// `aclTensor *` that the operator writes.
    ///
    /// # Errors
    /// For null, unless the header calls the parameter optional, and for anything but a live tensor.
    pub fn tensor_out(&mut self, handle: *const c_void) -> Result<(), Failure> {
        let name = self.parameter();
        if handle.is_null() && !name.contains("Optional") {
            return Err(Failure::new(ACLNN_PARAM_NULL, format!("parameter {name}: null output tensor")));
        }
        if !handle.is_null()
            && let Some(place) = extent::of(self.call.op).iter().position(|e| e.output == name)
        {
            self.outputs.push((place, Element(handle.addr())));
        }
        if self.call.op == ops::aclnnTransMatmulWeight {
            // Laid out anew where it is: the caller's tensor has another format from now on.
            let desc = self.objects.tensors.with(handle, name, Tensor::make_private)??;
            self.call.push_tensor(Some(desc));
            return Ok(());
        }
        self.tensor(handle)
    }

    /// The outputs of a data-dependent size, once every argument is there.
    fn growing(&self) -> impl Iterator<Item = Growing> {
        let table = extent::of(self.call.op);
        self.outputs.iter().filter_map(|&(place, tensor)| {
            let ndim = self.objects.tensors.with(tensor.handle(), "out", |t| t.desc.dims().len()).ok()?;
            Some(Growing { tensor, axis: table[place].axis_of(self.call, ndim)? })
        })
    }

    /// `const aclTensorList *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live list of live tensors.
    pub fn tensor_list(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let (name, objects, call) = (self.parameter(), self.objects, &mut *self.call);
        let start = call.tensors.len();
        let collected = objects.tensor_lists.with(handle, name, |list| {
            for element in list.iter() {
                call.tensors.push(objects.tensors.with(element.handle(), name, |t| t.desc)?);
            }
            Ok(list.len())
        })?;
        let len = collected?;
        self.call.args.push(Arg::TensorList { start: count(name, start)?, len: count(name, len)? });
        Ok(())
    }

    /// `const aclScalar *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live scalar.
    pub fn scalar(&mut self, handle: *const c_void) -> Result<(), Failure> {
        let arg = if handle.is_null() {
            Arg::Absent
        } else {
            Arg::Scalar(self.objects.scalars.with(handle, self.parameter(), |s| s.0)?)
        };
        self.call.args.push(arg);
        Ok(())
    }

    /// `const aclScalarList *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live list of live scalars.
    pub fn scalar_list(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let (name, objects, call) = (self.parameter(), self.objects, &mut *self.call);
        let start = call.scalars.len();
        let collected = objects.scalar_lists.with(handle, name, |list| {
            for element in list.iter() {
                call.scalars.push(objects.scalars.with(element.handle(), name, |s| s.0)?);
            }
            Ok(list.len())
        })?;
        let len = collected?;
        self.call.args.push(Arg::ScalarList { start: count(name, start)?, len: count(name, len)? });
        Ok(())
    }

    /// `const aclIntArray *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live array.
    pub fn int_array(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let (name, objects, call) = (self.parameter(), self.objects, &mut *self.call);
        objects.int_arrays.with(handle, name, |values| {
            call.push_ints(Some(values));
        })
    }

    /// `const aclBoolArray *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live array.
    pub fn bool_array(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let (name, objects, call) = (self.parameter(), self.objects, &mut *self.call);
        let start = call.ints.len() as u32;
        let len = objects.bool_arrays.with(handle, name, |values| {
            call.ints.extend(values.iter().map(|&v| i64::from(v != 0)));
            values.len() as u32
        })?;
        self.call.args.push(Arg::Ints { start, len });
        Ok(())
    }

    /// `const aclFloatArray *`; null is an absent optional.
    ///
    /// # Errors
    /// For anything but a live array.
    pub fn float_array(&mut self, handle: *const c_void) -> Result<(), Failure> {
        if handle.is_null() {
            self.call.args.push(Arg::Absent);
            return Ok(());
        }
        let (name, objects, call) = (self.parameter(), self.objects, &mut *self.call);
        let start = call.floats.len() as u32;
        let len = objects.float_arrays.with(handle, name, |values| {
            call.floats.extend_from_slice(values);
            values.len() as u32
        })?;
        self.call.args.push(Arg::Floats { start, len });
        Ok(())
    }

    /// `const char *`; null is an absent optional.
    ///
    /// # Errors
    /// None yet: a string that is too long is refused when the call is encoded.
    pub fn text(&mut self, text: Text) -> Result<(), Failure> {
        match text.bytes() {
            None => self.call.args.push(Arg::Absent),
            Some(bytes) => {
                self.call.push_str(bytes);
            }
        }
        Ok(())
    }
}

fn count(parameter: &str, n: usize) -> Result<u16, Failure> {
    let text = || format!("parameter {parameter}: {n} entries in one call, at most {} are supported", u16::MAX - 1);
    let small = u16::try_from(n).ok().filter(|&n| n < u16::MAX);
    small.ok_or_else(|| Failure::new(ACLNN_PARAM_INVALID, text()))
}

/// Phase one: `function` is its symbol, `capture` hands over the arguments.
pub fn first_phase(
    op: OpId,
    function: &'static str,
    workspace_size: Out<u64>,
    executor: Out<*mut c_void>,
    capture: impl FnOnce(&mut Capture<'_>) -> Result<(), Failure>,
) -> i32 {
    entry::status(function, || {
        workspace_size.check("workspaceSize").map_err(null)?;
        executor.check("executor").map_err(null)?;
        let objects = &process().objects;
        let handle = SCRATCH.with_borrow_mut(|call| {
            call.clear(op);
            let mut arguments = Capture { objects, call, outputs: Vec::new() };
            capture(&mut arguments)?;
            let growing: Vec<Growing> = arguments.growing().collect();
            objects.executors.insert(|executor| {
                executor.extents = growing;
                executor.output = small_output(call);
                executor.body.clear();
                executor.repeatable = false;
                executor.op = Some(op);
                let encoded = wire::op::encode_op(call, &mut executor.body);
                encoded.map_err(|e| Failure::new(ACLNN_PARAM_INVALID, e.to_string()))
            })
        })?;
        workspace_size.set("workspaceSize", 0)?;
        executor.set("executor", handle)
    })
}

/// Phase two: `function` is its symbol.
pub fn second_phase(op: OpId, function: &'static str, executor: *mut c_void, stream: *mut c_void) -> i32 {
    entry::status(function, || {
        let process = process();
        let stream = process.stream(stream)?;
        let waiting = process.objects.executors.visit(executor, "executor", |e| {
            let posted = post(op, e, &stream);
            let done = posted.is_ok() && !e.repeatable;
            (posted, done)
        })??;
        match waiting {
            // Callers lay weights out on the default stream and read them on others without a word between.
            None if op == ops::aclnnTransMatmulWeight && stream.id == 0 => stream.synchronise(),
            None => Ok(()),
            Some(Waiting { body, extents }) => {
                if let Some(extent) = stream.call_op(&body)? {
                    for output in extents {
                        // One that was destroyed meanwhile has nobody who would ask.
                        let _ = process.objects.tensors.with(output.tensor.handle(), "out", |t| {
                            t.shrink(output.axis, extent);
                        });
                    }
                }
                Ok(())
            }
        }
    })
}

/// An operator whose answer phase two must wait for, with no lock held.
struct Waiting {
    body: Vec<u8>,
    extents: Vec<Growing>,
}

fn post(op: OpId, executor: &Executor, stream: &Stream) -> Result<Option<Waiting>, Failure> {
    if executor.op != Some(op) {
        let of = executor.op.map_or("no operator", OpId::name);
        let text = format!("parameter executor: it was made by {of}GetWorkspaceSize");
        return Err(Failure::new(ACLNN_PARAM_INVALID, text));
    }
    if !extent::of(op).is_empty() {
        return Ok(Some(Waiting { body: executor.body.clone(), extents: executor.extents.clone() }));
    }
    stream.post_op(&executor.body, executor.output).map(|()| None)
}

/// The first output of a call, if a synchronisation may fetch it.
fn small_output(call: &OpCall) -> Option<Span> {
    let first = call.op.signature().params.iter().position(|p| p.kind == Kind::TensorOut)?;
    let Arg::Tensor(index) = call.args.get(first)? else { return None };
    let tensor = call.tensors.get(usize::from(*index))?;
    let (start, end) = tensor.byte_span().ok()??;
    Span::small(tensor.addr.checked_add(start)?, end - start)
}

fn null(failure: Failure) -> Failure {
    Failure { code: ACLNN_PARAM_NULL, ..failure }
}
