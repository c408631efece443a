//! Fields whose values are objects: `late`, and the members of `ttl_args`.

use serde::de::{MapAccess, SeqAccess, Visitor};

use super::{Errors, Fields, IgnoredAny, Listed, Object, Place, Shape, Shaped, Slot, Value};

/// An object that is the value of an optional field.
#[derive(Debug, Default)]
pub(in crate::task) enum Nested<T> {
    /// Null or an empty list.
    #[default]
    Absent,
    /// It was something else, and an error was noted.
    Faulty,
    Object(Box<T>),
}

/// What is in `late`.
#[derive(Debug, Default)]
pub(in crate::task) struct BodyLate<'a> {
    pub(in crate::task) after_ms: Option<Value<'a>>,
    pub(in crate::task) action: Option<Value<'a>>,
}

/// What is in `ttl_args`.
#[derive(Debug, Default)]
pub(in crate::task) struct TtlArgs<'a> {
    pub(in crate::task) items: Vec<BodyTtlArg<'a>>,
    /// An error was noted: what is left says nothing.
    pub(in crate::task) faulty: bool,
}

#[derive(Debug, Default)]
pub(in crate::task) struct BodyTtlArg<'a> {
    pub(in crate::task) index: Option<Value<'a>>,
    pub(in crate::task) unit: Option<Value<'a>>,
}

pub(super) fn late<'de, A: MapAccess<'de>>(
    map: &mut A,
    errors: &mut Errors,
) -> Result<Nested<BodyLate<'de>>, A::Error> {
    map.next_value_seed(Shaped(LateObject(errors)))
}

pub(super) fn ttl_args<'de, A: MapAccess<'de>>(map: &mut A, errors: &mut Errors) -> Result<TtlArgs<'de>, A::Error> {
    map.next_value_seed(Shaped(TtlArgList(errors)))
}

impl<'a> Fields<'a> for BodyLate<'a> {
    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>> {
        Some(match name {
            "after_ms" => Slot::Value(&mut self.after_ms),
            "do" => Slot::Value(&mut self.action),
            _ => return None,
        })
    }
}

impl<'a> Fields<'a> for BodyTtlArg<'a> {
    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>> {
        Some(match name {
            "index" => Slot::Value(&mut self.index),
            "unit" => Slot::Value(&mut self.unit),
            _ => return None,
        })
    }
}

struct LateObject<'e>(&'e mut Errors);

impl<'de> Shape<'de> for LateObject<'_> {
    type Value = Nested<BodyLate<'de>>;

    fn wrong(&mut self) -> Self::Value {
        self.0.invalid(Place::Late.to_string(), "this must be an object with `after_ms` and `do`");
        Nested::Faulty
    }

    fn list<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self::Value, A::Error> {
        if seq.next_element::<IgnoredAny>()?.is_none() {
            return Ok(Nested::Absent);
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.wrong())
    }

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let mut late = Box::<BodyLate<'_>>::default();
        Object { place: Place::Late, errors: self.0, fields: &mut *late }.visit_map(map)?;
        Ok(Nested::Object(late))
    }
}

struct TtlArgList<'e>(&'e mut Errors);

impl<'de> Shape<'de> for TtlArgList<'_> {
    type Value = TtlArgs<'de>;

    fn wrong(&mut self) -> Self::Value {
        self.0.invalid("/ttl_args", "this must be a list of objects with `index` and `unit`");
        TtlArgs { faulty: true, ..TtlArgs::default() }
    }

    fn list<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut args = TtlArgs::default();
        loop {
            let place = Place::TtlArg(args.items.len());
            match seq.next_element_seed(Listed::new(place, "`index` and `unit`", self.0))? {
                None => return Ok(args),
                Some(Some(member)) => args.items.push(member),
                Some(None) => {
                    args.items.push(BodyTtlArg::default());
                    args.faulty = true;
                }
            }
        }
    }
}
