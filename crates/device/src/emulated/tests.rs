//! Behaviour of the whole device.
