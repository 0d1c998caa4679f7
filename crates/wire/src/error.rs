//! Why bytes are not a record, and why a record cannot become bytes.

use thiserror::Error;

/// The value does not fit the protocol. Nothing was written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// An operator record without its call, or a call with another record.
    #[error("an operator call goes with an Op record and with nothing else")]
    CallMismatch,
    /// Wrong number of arguments.
    #[error("{op}: {have} arguments where the signature has {want}")]
    ArgCount {
        /// Operator.
        op: &'static str,
        /// Arguments given.
        have: usize,
        /// Parameters of the signature.
        want: usize,
    },
    /// An argument of another kind than the signature says.
    #[error("{op}: parameter {param} has an argument of the wrong kind")]
    ArgKind {
        /// Operator.
        op: &'static str,
        /// Parameter name.
        param: &'static str,
    },
    /// An argument whose value does not fit: an index outside its array, a size below zero, an integer wider than its C type.
    #[error("{op}: parameter {param}: {what}")]
    ArgValue {
        /// Operator.
        op: &'static str,
        /// Parameter name.
        param: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// More than a named limit of [`crate::limits`].
    #[error("{count} {what} exceed the limit of {max}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
}

/// The bytes are not what they claim to be: a protocol violation, never an ordinary failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The input ends inside a field.
    #[error("{need} more bytes expected, {have} left")]
    Truncated {
        /// Bytes of the field.
        need: usize,
        /// Bytes left.
        have: usize,
    },
    /// Bytes after the last field.
    #[error("{0} bytes after the end")]
    Trailing(usize),
    /// A tag, flag or enumeration value without a meaning.
    #[error("{what} {value} has no meaning")]
    Unknown {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A value outside its range.
    #[error("{what} {value} is out of range")]
    Range {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// More than a named limit of [`crate::limits`].
    #[error("{count} {what} exceed the limit of {max}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many may be.
        max: usize,
    },
    /// Text that must be UTF-8 and is not.
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    /// A line that is not the JSON of a hint.
    #[error("not the JSON of a hint, from column {column} on")]
    Json {
        /// Where reading stopped, from 1; 0 if a field was missing or had no meaning.
        column: usize,
    },
}
