//! The JSON of a task, read in one pass into borrowed parts. Whether the parts make a task is decided in `parse`.
//!
//! Serde's derived readers stop at the first error and cannot say where it is; these go on, and note a pointer. Only
//! what is not JSON at all ends the reading.

use std::{borrow::Cow, fmt, marker::PhantomData};

use serde::{
    Deserialize,
    de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::refusal::Errors;

mod nested;

pub(super) use self::nested::{BodyLate, BodyTtlArg, Nested, TtlArgs};

/// Bytes of an unknown field's name that are repeated in a pointer.
const MAX_NAME: usize = 64;

/// The fields of a body as they came. `None`: it has no such field.
#[derive(Debug, Default)]
pub(super) struct Body<'a> {
    pub(super) kind: Option<Value<'a>>,
    pub(super) command: Option<Value<'a>>,
    pub(super) args: Option<Strings<'a>>,
    pub(super) commands: Option<Commands<'a>>,
    pub(super) mode: Option<Value<'a>>,
    pub(super) script: Option<Value<'a>>,
    pub(super) keys: Option<Strings<'a>>,
    pub(super) encoding: Option<Value<'a>>,
    pub(super) idempotent: Option<Value<'a>>,
    pub(super) id: Option<Value<'a>>,
    pub(super) target: Option<Value<'a>>,
    pub(super) priority: Option<Value<'a>>,
    pub(super) max_retries: Option<Value<'a>>,
    pub(super) ordering_key: Option<Value<'a>>,
    pub(super) coalesce: Option<Value<'a>>,
    pub(super) first_try: Option<Value<'a>>,
    pub(super) occurred_at: Option<Value<'a>>,
    pub(super) deadline: Option<Value<'a>>,
    pub(super) late: Option<Nested<BodyLate<'a>>>,
    pub(super) version: Option<Value<'a>>,
    pub(super) ttl_args: Option<TtlArgs<'a>>,
    pub(super) written_keys: Option<Strings<'a>>,
    pub(super) trace_id: Option<Value<'a>>,
    pub(super) user_uuid: Option<Value<'a>>,
    pub(super) device_id: Option<Value<'a>>,
    pub(super) source: Option<Value<'a>>,
    pub(super) error: Option<Value<'a>>,
}

/// A pipeline's commands.
#[derive(Debug, Default)]
pub(super) struct Commands<'a> {
    /// None: it was no object, and an error was noted.
    pub(super) items: Vec<Option<BodyCommand<'a>>>,
    /// An error was noted: it was no list.
    pub(super) faulty: bool,
}

/// One of a pipeline's commands.
#[derive(Debug, Default)]
pub(super) struct BodyCommand<'a> {
    pub(super) command: Option<Value<'a>>,
    pub(super) args: Option<Strings<'a>>,
}

/// The value of a field that holds no list.
#[derive(Debug)]
pub(super) enum Value<'a> {
    /// Null or an empty list: what generated clients send for what they do not set.
    Absent,
    Text(Cow<'a, str>),
    Flag(bool),
    Number(u64),
    Other,
}

/// Arguments or keys. Numbers have become their literal text.
#[derive(Debug, Default)]
pub(super) struct Strings<'a> {
    pub(super) items: Vec<Cow<'a, [u8]>>,
    /// The index of the first that was a number.
    pub(super) number: Option<usize>,
    /// An error was noted: what is left says nothing.
    pub(super) faulty: bool,
}

/// Where in the body something is: a JSON pointer that is only written down when it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Body,
    Command(usize),
    Late,
    TtlArg(usize),
}

impl Place {
    pub(super) fn field(self, name: &str) -> String {
        format!("{self}/{name}")
    }

    pub(super) fn item(self, name: &str, index: usize) -> String {
        format!("{self}/{name}/{index}")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body => Ok(()),
            Self::Command(index) => write!(f, "/commands/{index}"),
            Self::Late => f.write_str("/late"),
            Self::TtlArg(index) => write!(f, "/ttl_args/{index}"),
        }
    }
}

/// Reads a body.
///
/// # Errors
///
/// When it is not a JSON object. All else that is wrong is added to `errors`.
pub(super) fn read<'a>(text: &'a str, body: &mut Body<'a>, errors: &mut Errors) -> Result<(), serde_json::Error> {
    let mut json = serde_json::Deserializer::from_str(text);
    (&mut json).deserialize_map(Object { place: Place::Body, errors, fields: body })?;
    json.end()
}

/// Where the value of a field goes.
enum Slot<'s, 'a> {
    Value(&'s mut Option<Value<'a>>),
    Strings(&'static str, &'s mut Option<Strings<'a>>),
    Commands(&'s mut Option<Commands<'a>>),
    Late(&'s mut Option<Nested<BodyLate<'a>>>),
    TtlArgs(&'s mut Option<TtlArgs<'a>>),
}

trait Fields<'a> {
    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>>;
}

impl<'a> Fields<'a> for Body<'a> {
    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>> {
        Some(match name {
            "type" => Slot::Value(&mut self.kind),
            "command" => Slot::Value(&mut self.command),
            "args" => Slot::Strings("args", &mut self.args),
            "commands" => Slot::Commands(&mut self.commands),
            "mode" => Slot::Value(&mut self.mode),
            "script" => Slot::Value(&mut self.script),
            "keys" => Slot::Strings("keys", &mut self.keys),
            "encoding" => Slot::Value(&mut self.encoding),
            "idempotent" => Slot::Value(&mut self.idempotent),
            "id" => Slot::Value(&mut self.id),
            "target" => Slot::Value(&mut self.target),
            "priority" => Slot::Value(&mut self.priority),
            "max_retries" => Slot::Value(&mut self.max_retries),
            "ordering_key" => Slot::Value(&mut self.ordering_key),
            "coalesce" => Slot::Value(&mut self.coalesce),
            "first_try" => Slot::Value(&mut self.first_try),
            "occurred_at" => Slot::Value(&mut self.occurred_at),
            "deadline" => Slot::Value(&mut self.deadline),
            "late" => Slot::Late(&mut self.late),
            "version" => Slot::Value(&mut self.version),
            "ttl_args" => Slot::TtlArgs(&mut self.ttl_args),
            "written_keys" => Slot::Strings("written_keys", &mut self.written_keys),
            "trace_id" => Slot::Value(&mut self.trace_id),
            "user_uuid" => Slot::Value(&mut self.user_uuid),
            "device_id" => Slot::Value(&mut self.device_id),
            "source" => Slot::Value(&mut self.source),
            "error" => Slot::Value(&mut self.error),
            _ => return None,
        })
    }
}

impl<'a> Fields<'a> for BodyCommand<'a> {
    fn slot(&mut self, name: &str) -> Option<Slot<'_, 'a>> {
        Some(match name {
            "command" => Slot::Value(&mut self.command),
            "args" => Slot::Strings("args", &mut self.args),
            _ => return None,
        })
    }
}

/// Reads an object into the slots of its fields.
struct Object<'e, F> {
    place: Place,
    errors: &'e mut Errors,
    fields: &'e mut F,
}

impl<'de, F: Fields<'de>> Visitor<'de> for Object<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { place, errors, fields } = self;
        while let Some(Name(name)) = map.next_key()? {
            let again = match fields.slot(&name) {
                Some(Slot::Value(slot)) => slot.replace(map.next_value()?).is_some(),
                Some(Slot::Strings(field, slot)) => {
                    let strings = map.next_value_seed(Shaped(StringList { place, field, errors }))?;
                    slot.replace(strings).is_some()
                }
                Some(Slot::Commands(slot)) => slot.replace(map.next_value_seed(Shaped(CommandList(errors)))?).is_some(),
                Some(Slot::Late(slot)) => slot.replace(nested::late(&mut map, errors)?).is_some(),
                Some(Slot::TtlArgs(slot)) => slot.replace(nested::ttl_args(&mut map, errors)?).is_some(),
                None => {
                    map.next_value::<IgnoredAny>()?;
                    errors.invalid(place.field(&escaped(&name)), "there is no such field");
                    false
                }
            };
            if again {
                errors.invalid(place.field(&name), "this field is there twice");
            }
        }
        Ok(())
    }
}

/// A name as a part of a JSON pointer, cut to a bounded length.
fn escaped(name: &str) -> String {
    let end = name.floor_char_boundary(MAX_NAME);
    name[..end].replace('~', "~0").replace('/', "~1")
}

/// A field's name.
struct Name<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;

        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }

            fn visit_borrowed_str<E>(self, name: &'de str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Borrowed(name)))
            }

            fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
                Ok(Name(Cow::Owned(name.to_owned())))
            }
        }

        deserializer.deserialize_str(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Value::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Self::Value, E> {
        Ok(Value::Flag(flag))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Value::Other)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Value::Absent)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut value = Value::Absent;
        while seq.next_element::<IgnoredAny>()?.is_some() {
            value = Value::Other;
        }
        Ok(value)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Value::Other)
    }
}

/// A value that must be of one JSON type. Another one is noted, and reading goes on.
trait Shape<'de>: Sized {
    type Value: Default;

    /// Notes that the value is of another type, and stands in for it.
    fn wrong(&mut self) -> Self::Value;

    fn null(&mut self) -> Self::Value {
        Self::Value::default()
    }

    fn list<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(self.wrong())
    }

    fn object<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(self.wrong())
    }
}

struct Shaped<S>(S);

impl<'de, S: Shape<'de>> Shaped<S> {
    fn wrong<E>(mut self) -> Result<S::Value, E> {
        Ok(self.0.wrong())
    }
}

impl<'de, S: Shape<'de>> DeserializeSeed<'de> for Shaped<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: Shape<'de>> Visitor<'de> for Shaped<S> {
    type Value = S::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(mut self) -> Result<Self::Value, E> {
        Ok(self.0.null())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        self.wrong()
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        self.wrong()
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        self.wrong()
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        self.wrong()
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        self.wrong()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
        self.0.list(seq)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        self.0.object(map)
    }
}

/// A list of strings; null is an empty one.
struct StringList<'e> {
    place: Place,
    field: &'static str,
    errors: &'e mut Errors,
}

impl<'de> Shape<'de> for StringList<'_> {
    type Value = Strings<'de>;

    fn wrong(&mut self) -> Self::Value {
        self.errors.invalid(self.place.field(self.field), "this must be a list of strings");
        Strings { faulty: true, ..Strings::default() }
    }

    fn list<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut strings = Strings { items: Vec::with_capacity(4), ..Strings::default() };
        while let Some(raw) = seq.next_element::<&RawValue>()? {
            let index = strings.items.len();
            match string(raw.get()) {
                Ok((item, is_number)) => {
                    strings.items.push(item);
                    if is_number {
                        strings.number.get_or_insert(index);
                    }
                }
                Err(detail) => {
                    self.errors.invalid(self.place.item(self.field, index), detail);
                    strings.items.push(Cow::Borrowed(b""));
                    strings.faulty = true;
                }
            }
        }
        Ok(strings)
    }
}

/// A pipeline's commands; null is an empty list.
struct CommandList<'e>(&'e mut Errors);

impl<'de> Shape<'de> for CommandList<'_> {
    type Value = Commands<'de>;

    fn wrong(&mut self) -> Self::Value {
        self.0.invalid("/commands", "this must be a list of objects with `command` and `args`");
        Commands { faulty: true, ..Commands::default() }
    }

    fn list<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut commands = Commands::default();
        loop {
            let place = Place::Command(commands.items.len());
            match seq.next_element_seed(Listed::new(place, "`command` and `args`", self.0))? {
                None => break,
                Some(command) => commands.items.push(command),
            }
        }
        Ok(commands)
    }
}

/// An object in a list. None: it was something else, and an error was noted.
struct Listed<'e, F> {
    place: Place,
    /// What its fields are called, for that error.
    names: &'static str,
    errors: &'e mut Errors,
    fields: PhantomData<F>,
}

impl<'e, F> Listed<'e, F> {
    fn new(place: Place, names: &'static str, errors: &'e mut Errors) -> Shaped<Self> {
        Shaped(Self { place, names, errors, fields: PhantomData })
    }
}

impl<'de, F: Fields<'de> + Default> Shape<'de> for Listed<'_, F> {
    type Value = Option<F>;

    fn wrong(&mut self) -> Self::Value {
        self.errors.invalid(self.place.to_string(), format!("this must be an object with {}", self.names));
        None
    }

    fn null(&mut self) -> Self::Value {
        self.wrong()
    }

    fn object<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let mut fields = F::default();
        Object { place: self.place, errors: self.errors, fields: &mut fields }.visit_map(map)?;
        Ok(Some(fields))
    }
}

/// Without a way out half-way, so that many bytes are looked at together.
fn has_escape(text: &[u8]) -> bool {
    text.iter().fold(false, |found, byte| found | (*byte == b'\\'))
}

/// What an item of a list of strings stands for, and whether it was a number. A string without escapes is borrowed; a
/// number is its text as it is written, so that no digit is lost: `1.10` stays `1.10`.
fn string(raw: &str) -> Result<(Cow<'_, [u8]>, bool), &'static str> {
    match raw.as_bytes() {
        [b'"', inner @ .., b'"'] if !has_escape(inner) => Ok((Cow::Borrowed(inner), false)),
        [b'"', ..] => match serde_json::from_str::<String>(raw) {
            Ok(text) => Ok((Cow::Owned(text.into_bytes()), false)),
            Err(_) => Err("an escape in this string is no character (a lone surrogate?); send bytes as base64"),
        },
        number @ [b'-' | b'0'..=b'9', ..] => Ok((Cow::Borrowed(number), true)),
        [b'n', ..] => Err("null has no meaning for Redis; send an empty string, or leave it out"),
        [b't' | b'f', ..] => Err("true and false have no meaning for Redis; send the string that you mean"),
        _ => Err("this must be a string; send an object or a list as the string that you want stored"),
    }
}
