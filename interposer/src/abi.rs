//! C parameter types: pointers that can only be read or written through a check.
//!
//! The hand-written and the generated entry points take these instead of raw pointers, so that their bodies are safe
//! Rust and every dereference of a caller's pointer stands in this file.
//!
//! **Invariant:** values of these types come only from a C caller; Rust code cannot make one. Their methods rely on
//! what the AscendCL headers ask of callers: a pointer that is not null is valid for its type (and count) for the
//! length of the call.

use std::ffi::{CStr, c_char, c_void};

use crate::error::Failure;

/// A handle, a device address or a host address that is passed on without being dereferenced here.
pub type Opaque = *mut c_void;

/// Where the caller wants one `T`.
#[repr(transparent)]
pub struct Out<T>(*mut T);

// Not derived: a pointer is `Copy` whatever it points at.
impl<T> Clone for Out<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Out<T> {}

impl<T> Out<T> {
    /// True for a null pointer.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// Refuses a null pointer before any work is done for it.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn check(self, parameter: &str) -> Result<(), Failure> {
        if self.0.is_null() { Err(Failure::null(parameter)) } else { Ok(()) }
    }

    /// Stores `value`.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn set(self, parameter: &str, value: T) -> Result<(), Failure> {
        self.check(parameter)?;
        // SAFETY: not null, so by the C contract (module doc) writable for one `T`; unaligned writes are allowed for.
        unsafe { self.0.write_unaligned(value) };
        Ok(())
    }

    /// The place of element `index`, where the caller wants several.
    pub fn at(self, index: usize) -> Self {
        // Null stays null, so that `set` finds it.
        if self.0.is_null() { self } else { Self(self.0.wrapping_add(index)) }
    }

    /// Stores `value` if the caller wants it.
    pub fn set_if_wanted(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: as in `set`.
            unsafe { self.0.write_unaligned(value) };
        }
    }
}

impl Out<i32> {
    /// The value that the caller has put there, for parameters that go both ways.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn get(self, parameter: &str) -> Result<i32, Failure> {
        self.check(parameter)?;
        // SAFETY: not null, so by the C contract readable for one `int32_t`; unaligned reads are allowed for.
        Ok(unsafe { self.0.read_unaligned() })
    }
}

impl Out<c_char> {
    /// Stores `text` and a NUL in a buffer of `room` bytes, cut to fit.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter, and for no room at all.
    pub fn set_text(self, parameter: &str, text: &str, room: usize) -> Result<(), Failure> {
        self.set_bytes(parameter, text.as_bytes(), room)
    }

    /// The same for bytes that need not be UTF-8.
    ///
    /// # Errors
    /// As [`Out::set_text`].
    pub fn set_bytes(self, parameter: &str, text: &[u8], room: usize) -> Result<(), Failure> {
        self.check(parameter)?;
        if room == 0 {
            return Err(Failure::invalid(format!("parameter {parameter}: no room for a string")));
        }
        let len = text.len().min(room - 1);
        // SAFETY: not null, so by the C contract writable for `room` bytes, of which `len + 1 <= room` are written;
        // `text` is ours and cannot overlap the caller's buffer.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), len);
            self.0.add(len).write(0);
        }
        Ok(())
    }
}

/// `n` values of `T` that the caller lends for the length of the call.
#[repr(transparent)]
pub struct In<T>(*const T);

impl<T: Copy> In<T> {
    /// True for a null pointer.
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The value, for a pointer to one.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn get(&self, parameter: &str) -> Result<T, Failure> {
        if self.0.is_null() {
            return Err(Failure::null(parameter));
        }
        // SAFETY: not null, so by the C contract readable for one `T`; unaligned reads are allowed for.
        Ok(unsafe { self.0.read_unaligned() })
    }

    /// Appends `count` values to `out`; a null pointer is all right for none.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn append_to(&self, parameter: &str, count: usize, out: &mut Vec<T>) -> Result<(), Failure> {
        if count == 0 {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(Failure::null(parameter));
        }
        out.reserve(count);
        for i in 0..count {
            // SAFETY: not null, so by the C contract readable for `count` values, and `i < count`.
            out.push(unsafe { self.0.add(i).read_unaligned() });
        }
        Ok(())
    }

    /// Fills `out` with that many values.
    ///
    /// # Errors
    /// [`Failure::null`], naming the parameter.
    pub fn fill(&self, parameter: &str, out: &mut [T]) -> Result<(), Failure> {
        if !out.is_empty() && self.0.is_null() {
            return Err(Failure::null(parameter));
        }
        for (i, slot) in out.iter_mut().enumerate() {
            // SAFETY: not null, so by the C contract readable for `out.len()` values, and `i` is below that.
            *slot = unsafe { self.0.add(i).read_unaligned() };
        }
        Ok(())
    }
}

impl<T> From<*const T> for In<T> {
    /// For a list that a structure of the caller's points to, under the same contract.
    fn from(pointer: *const T) -> Self {
        Self(pointer)
    }
}

/// A NUL-terminated string, or null.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The bytes without the NUL; `None` for a null pointer.
    pub fn bytes(&self) -> Option<&[u8]> {
        if self.0.is_null() {
            return None;
        }
        // SAFETY: not null, so by the C contract NUL-terminated and alive for the length of the call, which the borrow
        // of `self` (a parameter of that call) does not outlast.
        Some(unsafe { CStr::from_ptr(self.0) }.to_bytes())
    }

    /// The string with replacement characters for what is not UTF-8; `None` for a null pointer.
    pub fn lossy(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.bytes().map(String::from_utf8_lossy)
    }
}

impl From<*mut c_char> for Text {
    /// For the few functions whose header forgot the `const`.
    fn from(pointer: *mut c_char) -> Self {
        Self(pointer)
    }
}

/// A C `bool`: any byte, of which 0 is false.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Flag(u8);

impl Flag {
    /// The truth value.
    pub fn get(self) -> bool {
        self.0 != 0
    }
}

/// Memory for the caller to release with `free`/`delete[]`, as the AscendCL getters of shapes hand out.
///
/// # Errors
/// `ACL_ERROR_BAD_ALLOC` when the C library has none.
pub fn malloc_copy(values: &[i64]) -> Result<*mut i64, Failure> {
    // One element at least, so that the pointer is never null for success.
    let bytes = std::mem::size_of_val(values).max(std::mem::size_of::<i64>());
    // SAFETY: `malloc` may be called with any size.
    let block = unsafe { libc::malloc(bytes) }.cast::<i64>();
    if block.is_null() {
        return Err(Failure::new(acl_abi::values::ACL_ERROR_BAD_ALLOC, format!("no memory for {bytes} bytes")));
    }
    // SAFETY: `block` has room for `values` (at least `bytes`), is aligned for i64 by malloc's contract, and is new.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), block, values.len()) };
    Ok(block)
}
