//! A Redis small enough to be certain about, at a time that is passed in: what the rules for replays and late writes
//! are tried on. It knows the commands that they tell apart, and no more.

use std::collections::{BTreeMap, BTreeSet};

/// Keys with their values. Times are milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelRedis {
    keys: BTreeMap<Vec<u8>, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    value: Value,
    expires_at: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    Text(Vec<u8>),
    Hash(BTreeMap<Vec<u8>, Field>),
    Set(BTreeSet<Vec<u8>>),
    SortedSet(BTreeMap<Vec<u8>, Vec<u8>>),
    List(Vec<Vec<u8>>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Field {
    value: Vec<u8>,
    expires_at: Option<i64>,
}

/// The command changed nothing, and Redis says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    WrongType,
    NoSuchKey,
    NotANumber,
}

type Answer<T = ()> = Result<T, Refused>;

impl Value {
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Hash(fields) => fields.is_empty(),
            Self::Set(members) => members.is_empty(),
            Self::SortedSet(members) => members.is_empty(),
            Self::List(items) => items.is_empty(),
        }
    }
}

/// How a type is made where nothing is, and found where it is.
trait Kind: Sized {
    fn nothing() -> Value;
    fn of(value: &mut Value) -> Option<&mut Self>;
}

macro_rules! kind {
    ($type:ty, $variant:ident) => {
        impl Kind for $type {
            fn nothing() -> Value {
                Value::$variant(Self::default())
            }

            fn of(value: &mut Value) -> Option<&mut Self> {
                if let Value::$variant(found) = value { Some(found) } else { None }
            }
        }
    };
}

kind!(BTreeMap<Vec<u8>, Field>, Hash);
kind!(BTreeSet<Vec<u8>>, Set);
kind!(BTreeMap<Vec<u8>, Vec<u8>>, SortedSet);
kind!(Vec<Vec<u8>>, List);

impl ModelRedis {
    /// Removes what has expired.
    pub fn expire(&mut self, now: i64) {
        let is_over = |expires_at: Option<i64>| expires_at.is_some_and(|at| at <= now);
        self.keys.retain(|_, entry| {
            if let Value::Hash(fields) = &mut entry.value {
                fields.retain(|_, field| !is_over(field.expires_at));
            }
            !is_over(entry.expires_at) && !entry.value.is_empty()
        });
    }

    pub fn exists(&self, key: &[u8]) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether a key is the same in both.
    pub fn agrees_on(&self, other: &Self, key: &[u8]) -> bool {
        self.keys.get(key) == other.keys.get(key)
    }

    /// When a key expires.
    pub fn expires_at(&self, key: &[u8]) -> Option<i64> {
        self.keys.get(key)?.expires_at
    }

    /// Runs a command, in upper case, with TTLs as they stand in its arguments.
    pub fn run(&mut self, now: i64, name: &str, args: &[&[u8]]) -> Answer {
        self.expire(now);
        let answer = self.dispatch(now, name, args);
        // A time in the past removes at once, and so does taking the last of something.
        self.expire(now);
        answer
    }

    fn dispatch(&mut self, now: i64, name: &str, args: &[&[u8]]) -> Answer {
        let key = args[0];
        match (name, args) {
            ("SET", [_, value, options @ ..]) => self.set(now, key, value, options),
            ("SETEX", [_, ttl, value]) => self.set(now, key, value, &[b"EX", ttl]),
            ("PSETEX", [_, ttl, value]) => self.set(now, key, value, &[b"PX", ttl]),
            ("SETNX", [_, value]) => self.set(now, key, value, &[b"NX"]),
            ("MSET", pairs) => pairs.chunks(2).try_for_each(|pair| self.set(now, pair[0], pair[1], &[])),
            ("GETEX", [_, options @ ..]) => {
                if let Some(entry) = self.keys.get_mut(key) {
                    if !matches!(entry.value, Value::Text(_)) {
                        return Err(Refused::WrongType);
                    }
                    match options {
                        [b"PERSIST"] => entry.expires_at = None,
                        options => entry.expires_at = expiry(now, options).or(entry.expires_at),
                    }
                }
                Ok(())
            }
            ("DEL" | "UNLINK", keys) => {
                self.keys.retain(|key, _| !keys.contains(&&key[..]));
                Ok(())
            }
            ("RENAME", [_, to]) => {
                let entry = self.keys.remove(key).ok_or(Refused::NoSuchKey)?;
                self.keys.insert(to.to_vec(), entry);
                Ok(())
            }
            ("INCR", [_]) => self.increment(key),
            ("RPUSH", [_, items @ ..]) => {
                self.value::<Vec<_>>(key)?.extend(items.iter().map(|item| item.to_vec()));
                Ok(())
            }
            ("SADD", [_, members @ ..]) => {
                self.value::<BTreeSet<_>>(key)?.extend(members.iter().map(|member| member.to_vec()));
                Ok(())
            }
            ("SREM", [_, members @ ..]) => {
                let set = self.value::<BTreeSet<_>>(key)?;
                set.retain(|member| !members.contains(&&member[..]));
                Ok(())
            }
            ("ZADD", [_, score, member]) => {
                self.value::<BTreeMap<_, Vec<u8>>>(key)?.insert(member.to_vec(), score.to_vec());
                Ok(())
            }
            ("ZREM", [_, member]) => {
                self.value::<BTreeMap<_, Vec<u8>>>(key)?.remove(*member);
                Ok(())
            }
            ("HSET" | "HMSET", [_, pairs @ ..]) => {
                let hash = self.value::<BTreeMap<_, Field>>(key)?;
                for pair in pairs.chunks(2) {
                    hash.insert(pair[0].to_vec(), Field { value: pair[1].to_vec(), expires_at: None });
                }
                Ok(())
            }
            ("HDEL", [_, fields @ ..]) => {
                let hash = self.value::<BTreeMap<_, Field>>(key)?;
                hash.retain(|field, _| !fields.contains(&&field[..]));
                Ok(())
            }
            ("HSETEX", [_, option, ttl, b"FIELDS", _, pairs @ ..]) => {
                let expires_at = expiry(now, &[option, ttl]);
                let hash = self.value::<BTreeMap<_, Field>>(key)?;
                for pair in pairs.chunks(2) {
                    hash.insert(pair[0].to_vec(), Field { value: pair[1].to_vec(), expires_at });
                }
                Ok(())
            }
            ("HEXPIRE" | "HPEXPIRE" | "HEXPIREAT" | "HPEXPIREAT", [_, ttl, b"FIELDS", _, fields @ ..]) => {
                let expires_at = expiry(now, &[&name.as_bytes()[1..], ttl]);
                let hash = self.value::<BTreeMap<_, Field>>(key)?;
                for field in fields {
                    hash.entry(field.to_vec()).and_modify(|field| field.expires_at = expires_at);
                }
                Ok(())
            }
            ("EXPIRE" | "PEXPIRE" | "EXPIREAT" | "PEXPIREAT", [_, ttl, flags @ ..]) => {
                let at = expiry(now, &[name.as_bytes(), ttl]).ok_or(Refused::NotANumber)?;
                if let Some(entry) = self.keys.get_mut(key) {
                    // No TTL counts as an endless one.
                    let old = entry.expires_at.unwrap_or(i64::MAX);
                    let applies = flags.iter().all(|flag| match *flag {
                        b"NX" => entry.expires_at.is_none(),
                        b"XX" => entry.expires_at.is_some(),
                        b"GT" => at > old,
                        b"LT" => at < old,
                        other => panic!("no flag of this command: {other:?}"),
                    });
                    if applies {
                        entry.expires_at = Some(at);
                    }
                }
                Ok(())
            }
            ("PERSIST", [_]) => {
                if let Some(entry) = self.keys.get_mut(key) {
                    entry.expires_at = None;
                }
                Ok(())
            }
            _ => panic!("the model does not know {name} with {} arguments", args.len()),
        }
    }

    fn set(&mut self, now: i64, key: &[u8], value: &[u8], options: &[&[u8]]) -> Answer {
        if options.contains(&&b"GET"[..])
            && self.keys.get(key).is_some_and(|entry| !matches!(entry.value, Value::Text(_)))
        {
            return Err(Refused::WrongType);
        }
        let unless = options
            .iter()
            .any(|option| (*option == b"NX" && self.exists(key)) || (*option == b"XX" && !self.exists(key)));
        if !unless {
            let kept = if options.contains(&&b"KEEPTTL"[..]) { self.expires_at(key) } else { None };
            let entry = Entry { value: Value::Text(value.to_vec()), expires_at: expiry(now, options).or(kept) };
            self.keys.insert(key.to_vec(), entry);
        }
        Ok(())
    }

    fn increment(&mut self, key: &[u8]) -> Answer {
        let entry = self.keys.entry(key.to_vec());
        let entry = entry.or_insert_with(|| Entry { value: Value::Text(b"0".to_vec()), expires_at: None });
        let Value::Text(text) = &mut entry.value else { return Err(Refused::WrongType) };
        *text = (number(text).ok_or(Refused::NotANumber)? + 1).to_string().into();
        Ok(())
    }

    /// What is under the key, made if nothing is. [`ModelRedis::expire`] removes what stays empty.
    fn value<K: Kind>(&mut self, key: &[u8]) -> Answer<&mut K> {
        let entry = self.keys.entry(key.to_vec()).or_insert_with(|| Entry { value: K::nothing(), expires_at: None });
        K::of(&mut entry.value).ok_or(Refused::WrongType)
    }
}

/// The seeds of random cases: the same each time, unless `<name>_CASES` sets how many: then from a random one on.
/// `<name>_SEED` sets the first, to repeat what was found.
pub fn seeds(name: &str, cases: u64) -> impl Iterator<Item = u64> {
    let asked =
        |what: &str| std::env::var(format!("{name}_{what}")).ok().map(|number| number.parse().expect("a number"));
    let soak: Option<u64> = asked("CASES");
    let first = asked("SEED").unwrap_or_else(|| if soak.is_some() { fastrand::u64(..) } else { 0 });
    (0..soak.unwrap_or(cases)).map(move |case| first.wrapping_add(case))
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The time that the options say, if they say one.
fn expiry(now: i64, options: &[&[u8]]) -> Option<i64> {
    options.windows(2).find_map(|pair| {
        let amount = number(pair[1])?;
        match pair[0] {
            b"EX" | b"EXPIRE" => Some(now + amount * 1000),
            b"PX" | b"PEXPIRE" => Some(now + amount),
            b"EXAT" | b"EXPIREAT" => Some(amount * 1000),
            b"PXAT" | b"PEXPIREAT" => Some(amount),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the commands, each at its time, and says which keys there are at the end of the last.
    fn check(commands: &[(i64, &str)], expected: &[(&str, Option<i64>)]) {
        let mut redis = ModelRedis::default();
        for (now, command) in commands {
            let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
            let name = std::str::from_utf8(words[0]).expect("it was text");
            redis.run(*now, name, &words[1..]).expect("it is not refused");
        }
        let found: Vec<_> =
            redis.keys.iter().map(|(key, entry)| (std::str::from_utf8(key).expect("text"), entry.expires_at)).collect();
        assert_eq!(found, expected, "{commands:?}");
    }

    #[test]
    fn it_expires_and_forgets_as_redis_does() {
        check(&[(0, "SET k v PX 5"), (4, "DEL x")], &[("k", Some(5))]);
        check(&[(0, "SET k v PX 5"), (5, "DEL x")], &[]);
        check(&[(0, "SET k v PX 5"), (1, "SET k w")], &[("k", None)]);
        check(&[(0, "SET k v EX 5"), (1, "INCR n"), (2, "RENAME k n")], &[("n", Some(5000))]);
        check(&[(0, "SET k v"), (1, "PEXPIREAT k 1")], &[]);
        check(&[(0, "HSET h f 1"), (1, "EXPIRE h 9"), (2, "HDEL h f"), (3, "HSET h g 1")], &[("h", None)]);
        check(&[(0, "HSET h f 1"), (1, "HPEXPIREAT h 3 FIELDS 1 f"), (4, "DEL x")], &[]);
        check(&[(0, "SET k v PX 9"), (1, "PEXPIREAT k 20 LT"), (1, "PEXPIREAT k 15 GT NX")], &[("k", Some(9))]);
        check(&[(0, "SADD s x"), (0, "PEXPIREAT s 30 GT")], &[("s", None)]);
        check(&[(0, "SET s x"), (0, "PEXPIREAT s 30 LT"), (1, "GETEX s PERSIST")], &[("s", None)]);
    }
}
