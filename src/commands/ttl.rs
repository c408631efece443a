//! When what a command writes expires: where its arguments say so, and how the same is said of another time.

use std::borrow::Cow;

use super::CommandSpec;

/// An argument that says when something expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlAt {
    /// Its index in the arguments.
    pub index: usize,
    pub unit: TtlUnit,
    /// Counted from the Unix epoch, not from the time of execution.
    pub absolute: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlUnit {
    Seconds,
    Millis,
}

/// What a command does to the TTL of the keys that it writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TtlEffect {
    /// Nothing, or what cannot be told from its arguments. A whole overwrite ([`Overwrite::Whole`]) without a TTL
    /// removes the former one too.
    ///
    /// [`Overwrite::Whole`]: super::Overwrite::Whole
    None,
    /// Sets it, be it only where there is none (`NX`) or a later one (`LT`).
    Sets(TtlAt),
    /// Sets it if what is there allows it (`XX`, `GT`, a comparison): it says nothing about other writes to the key.
    SetsIf(TtlAt),
    /// The key, if there is one, has no TTL afterwards.
    Clears,
    /// Sets that of fields of a hash, which concerns these fields only.
    Fields(TtlAt),
}

impl TtlEffect {
    /// The argument that says when, if one does.
    pub fn at(self) -> Option<TtlAt> {
        match self {
            Self::Sets(at) | Self::SetsIf(at) | Self::Fields(at) => Some(at),
            Self::None | Self::Clears => None,
        }
    }
}

/// When something expires, as the server will be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// In milliseconds since 1970, by the server's clock.
    At(i64),
    /// In so many milliseconds, at least 1: for servers before 6.2, which know no other form.
    In(u64),
}

impl TtlUnit {
    /// So much of this unit in milliseconds. None: more than there can be.
    fn millis(self, amount: i64) -> Option<i64> {
        match self {
            Self::Seconds => amount.checked_mul(1000),
            Self::Millis => Some(amount),
        }
    }

    /// The time at which a TTL of so much ends that was set at `base_ms`. None: more than there can be.
    pub(crate) fn after(self, amount: i64, base_ms: i64) -> Option<i64> {
        base_ms.checked_add(self.millis(amount)?)
    }
}

impl TtlAt {
    /// The number that the arguments say.
    pub fn value<A: AsRef<[u8]>>(self, args: &[A]) -> Option<i64> {
        integer(args.get(self.index)?.as_ref())
    }

    /// When it expires, in milliseconds since 1970, if a relative TTL was meant at `base_ms`.
    ///
    /// None: the number is none, not above 0, or too large, or a time that had passed at `base_ms` already. Such a
    /// command is sent as it stands; Redis refuses it, or deletes what it names at once, which was meant and is as true
    /// later.
    pub fn at_ms<A: AsRef<[u8]>>(self, args: &[A], base_ms: i64) -> Option<i64> {
        self.read(args.get(self.index)?.as_ref(), base_ms)
    }

    /// As [`Self::at_ms`], of the argument itself.
    pub fn read(self, arg: &[u8], base_ms: i64) -> Option<i64> {
        let amount = integer(arg).filter(|amount| *amount > 0)?;
        if self.absolute {
            self.unit.millis(amount).filter(|at| *at > base_ms)
        } else {
            self.unit.after(amount, base_ms)
        }
    }
}

impl Expiry {
    /// The option that says it, and its number.
    fn option(self) -> (&'static str, String) {
        match self {
            Self::At(at) => ("PXAT", at.to_string()),
            Self::In(rest) => ("PX", rest.to_string()),
        }
    }

    /// Which of two commands says it.
    fn name(self, at: &'static str, rest: &'static str) -> &'static str {
        match self {
            Self::At(_) => at,
            Self::In(_) => rest,
        }
    }
}

impl CommandSpec {
    /// The command that does the same with another expiry: its name and arguments. The arguments are those of this
    /// command, have been checked, and say at `ttl` when what they write expires.
    pub fn with_expiry<'a>(
        &self,
        args: impl Iterator<Item = &'a [u8]>,
        ttl: TtlAt,
        expiry: Expiry,
    ) -> (&'static str, Vec<Cow<'a, [u8]>>) {
        // RESTORE and SETEX may get one more.
        let mut rewritten = Vec::with_capacity(args.size_hint().0 + 1);
        rewritten.extend(args.map(Cow::Borrowed));
        let (option, number) = expiry.option();
        rewritten[ttl.index] = Cow::Owned(number.into_bytes());
        let option = Cow::Borrowed(option.as_bytes());
        let name = match self.name {
            "SETEX" | "PSETEX" => {
                rewritten.swap(1, 2);
                rewritten.insert(2, option);
                "SET"
            }
            "EXPIRE" | "EXPIREAT" | "PEXPIRE" | "PEXPIREAT" => expiry.name("PEXPIREAT", "PEXPIRE"),
            "HEXPIRE" | "HEXPIREAT" | "HPEXPIRE" | "HPEXPIREAT" => expiry.name("HPEXPIREAT", "HPEXPIRE"),
            "RESTORE" => {
                // Among the options behind the value, where it cannot be anything else.
                let is_absolute = |arg: &Cow<'_, [u8]>| arg.eq_ignore_ascii_case(b"ABSTTL");
                match expiry {
                    Expiry::At(_) if !ttl.absolute => rewritten.push(Cow::Borrowed(b"ABSTTL")),
                    Expiry::In(_) if ttl.absolute => {
                        let mut index = 0;
                        rewritten.retain(|arg| {
                            index += 1;
                            index <= 3 || !is_absolute(arg)
                        });
                    }
                    _ => {}
                }
                self.name
            }
            // The option stands before its number.
            _ => {
                rewritten[ttl.index - 1] = option;
                self.name
            }
        };
        (name, rewritten)
    }
}

/// A number as Redis reads one: decimal, no plus, no leading zeros, no spaces.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if text != b"0" && !matches!(digits.first(), Some(b'1'..=b'9')) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}
