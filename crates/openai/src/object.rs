//! The frame of reading a JSON object member by member, borrowed from the body.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, MapAccess, Visitor};

/// What is kept of an object's members.
pub(crate) trait Members<'de>: Default {
    /// Takes the value of the member `key` out of `map`, wanted or not.
    fn take<A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error>;
}

/// Reads an object; anything else is an error.
pub(crate) fn object<'de, M: Members<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<M, D::Error> {
    deserializer.deserialize_map(Object(PhantomData))
}

/// The members of `map`; for visitors that take other values too.
pub(crate) fn members<'de, M: Members<'de>, A: MapAccess<'de>>(mut map: A) -> Result<M, A::Error> {
    let mut members = M::default();
    while let Some(key) = map.next_key::<Cow<'de, str>>()? {
        members.take(&key, &mut map)?;
    }
    Ok(members)
}

struct Object<M>(PhantomData<M>);

impl<'de, M: Members<'de>> Visitor<'de> for Object<M> {
    type Value = M;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<M, A::Error> {
        members(map)
    }
}
