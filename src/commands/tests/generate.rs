//! Valid arguments for every accepted command, from Redis' own syntax.
//!
//! A template is a row of words: a lower-case word stands for a value of that kind, any other for itself in random
//! case; `(a|b)` is one of them, `[a|b]` one of them or nothing, `{a}` one to three times.

use fastrand::Rng;

/// By command, sorted.
#[rustfmt::skip]
pub(super) const TEMPLATES: &[(&str, &str)] = &[
    ("APPEND", "string value"),
    ("BITFIELD", "string [GET bits offset] [{(GET bits offset|SET bits offset int|INCRBY bits offset int|OVERFLOW (WRAP|SAT|FAIL) INCRBY bits offset int)}]"),
    ("BITOP", "((AND|OR|XOR) string {string}|NOT string string)"),
    ("COPY", "any any [DB 1] [REPLACE]"),
    ("DECR", "string"),
    ("DECRBY", "string int"),
    ("DEL", "{any}"),
    ("EXPIRE", "any seconds [NX|XX|GT|LT]"),
    ("EXPIREAT", "any epoch [NX|XX|GT|LT]"),
    ("GEOADD", "geo [NX|XX] [CH] {degrees degrees member}"),
    ("GEORADIUS", "geo degrees degrees radius unit (STORE any [COUNT count] [ASC]|[COUNT count [ANY]] [ASC|DESC] (STORE|STOREDIST) any)"),
    ("GEORADIUSBYMEMBER", "geo member radius unit (STORE any [COUNT count] [ASC]|[COUNT count [ANY]] [ASC|DESC] (STORE|STOREDIST) any)"),
    ("GEOSEARCHSTORE", "any geo (FROMMEMBER member|FROMLONLAT degrees degrees) (BYRADIUS radius unit|BYBOX radius radius unit) [ASC|DESC] [COUNT count [ANY]] [STOREDIST]"),
    ("GETDEL", "string"),
    ("GETEX", "string [EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|PERSIST]"),
    ("GETSET", "string value"),
    ("HDEL", "hash {member}"),
    ("HINCRBY", "hash member int"),
    ("HINCRBYFLOAT", "hash member score"),
    ("HMSET", "hash {member value}"),
    ("HSET", "hash {member value}"),
    ("HSETNX", "hash member value"),
    ("INCR", "string"),
    ("INCRBY", "string int"),
    ("INCRBYFLOAT", "string score"),
    ("LINSERT", "list (BEFORE|AFTER) member value"),
    ("LMOVE", "list list (LEFT|RIGHT) (LEFT|RIGHT)"),
    ("LMPOP", "lists (LEFT|RIGHT) [COUNT count]"),
    ("LPOP", "list [count]"),
    ("LPUSH", "list {value}"),
    ("LPUSHX", "list {value}"),
    ("LREM", "list int member"),
    ("LSET", "list count value"),
    ("LTRIM", "list int int"),
    ("MOVE", "any 1"),
    ("MSET", "{any value}"),
    ("MSETNX", "{any value}"),
    ("PERSIST", "any"),
    ("PEXPIRE", "any millis [NX|XX|GT|LT]"),
    ("PEXPIREAT", "any epoch_ms [NX|XX|GT|LT]"),
    ("PFADD", "hll [{value}]"),
    ("PFMERGE", "hll [{hll}]"),
    ("PSETEX", "any millis value"),
    ("RENAME", "any any"),
    ("RENAMENX", "any any"),
    ("RESTORE", "any (0 dump [REPLACE] [ABSTTL]|millis dump [REPLACE] [FREQ count]|epoch_ms dump [REPLACE] ABSTTL [IDLETIME count])"),
    ("RPOP", "list [count]"),
    ("RPOPLPUSH", "list list"),
    ("RPUSH", "list {value}"),
    ("RPUSHX", "list {value}"),
    ("SADD", "set {member}"),
    ("SDIFFSTORE", "any {set}"),
    ("SET", "any value (NX [GET]|XX [GET]|GET|[EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|KEEPTTL] [NX|XX]|[NX|XX] [EX seconds|PXAT epoch_ms])"),
    ("SETBIT", "string offset (0|1)"),
    ("SETEX", "any seconds value"),
    ("SETNX", "any value"),
    ("SETRANGE", "string offset value"),
    ("SINTERSTORE", "any {set}"),
    ("SMOVE", "set set member"),
    ("SORT", "(list|set|zset) [BY pattern] [LIMIT 0 count] [{GET pattern}] [ASC|DESC] ALPHA STORE any [DESC]"),
    ("SPOP", "set [count]"),
    ("SREM", "set {member}"),
    ("SUNIONSTORE", "any {set}"),
    ("UNLINK", "{any}"),
    ("XACK", "stream g {id}"),
    ("XADD", "stream [NOMKSTREAM] [(MAXLEN|MINID) [=|~] count] (*|id|bigid) {member value}"),
    ("XAUTOCLAIM", "stream g member 0 id [COUNT count] [JUSTID]"),
    ("XCLAIM", "stream g member 0 {id} [FORCE] [JUSTID]"),
    ("XDEL", "stream {id}"),
    ("XGROUP", "(CREATE stream (g|h) ($|id) [MKSTREAM]|SETID stream g ($|id)|DESTROY stream (g|h)|CREATECONSUMER stream g member|DELCONSUMER stream g member)"),
    ("XSETID", "stream bigid"),
    ("XTRIM", "stream (MAXLEN|MINID) [=|~] count"),
    ("ZADD", "zset [NX|XX [GT|LT]|GT|LT] [CH] (INCR score member|{score member})"),
    ("ZDIFFSTORE", "any zsets"),
    ("ZINCRBY", "zset score member"),
    ("ZINTERSTORE", "any zsets [AGGREGATE (SUM|MIN|MAX)]"),
    ("ZMPOP", "zsets (MIN|MAX) [COUNT count]"),
    ("ZPOPMAX", "zset [count]"),
    ("ZPOPMIN", "zset [count]"),
    ("ZRANGESTORE", "any zset (0 int [REV]|score score BYSCORE [LIMIT 0 count]|lexmin lexmax BYLEX)"),
    ("ZREM", "zset {member}"),
    ("ZREMRANGEBYLEX", "zset lexmin lexmax"),
    ("ZREMRANGEBYRANK", "zset int int"),
    ("ZREMRANGEBYSCORE", "zset score (score|+inf)"),
    ("ZUNIONSTORE", "any zsets [AGGREGATE (SUM|MIN|MAX)]"),
];

/// Those that Redis 7.0 does not know.
#[rustfmt::skip]
pub(super) const NEWER_TEMPLATES: &[(&str, &str)] = &[
    ("DELIFEQ", "string (10|abc|value)"),
    ("HEXPIRE", "hash seconds [NX|XX|GT|LT] fields"),
    ("HEXPIREAT", "hash epoch [NX|XX|GT|LT] fields"),
    ("HGETDEL", "hash fields"),
    ("HGETEX", "hash [EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|PERSIST] fields"),
    ("HPERSIST", "hash fields"),
    ("HPEXPIRE", "hash millis [NX|XX|GT|LT] fields"),
    ("HPEXPIREAT", "hash epoch_ms [NX|XX|GT|LT] fields"),
    ("HSETEX", "hash ([FNX|FXX] [EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|KEEPTTL]|[EX seconds|PXAT epoch_ms] [FNX|FXX]) pairs"),
    ("MSETEX", "msetex [NX|XX] [EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|KEEPTTL]"),
    ("SET", "string value IFEQ (10|abc|value) [GET] [EX seconds|PX millis|EXAT epoch|PXAT epoch_ms|KEEPTTL]"),
];

/// Keys by type, as [`POPULATION`] makes them. Some are called like options.
const STRINGS: &[&str] = &["s0", "s1", "STORE"];
const HASHES: &[&str] = &["h0", "h1"];
const LISTS: &[&str] = &["l0", "l1", "get"];
const SETS: &[&str] = &["e0", "e1", "BY"];
const SORTED_SETS: &[&str] = &["z0", "z1", "LIMIT"];
const PLACES: &[&str] = &["g0", "{g}1"];
const STREAMS: &[&str] = &["x0", "x1"];
const COUNTERS: &[&str] = &["p0", "p1"];
const MISSING: &[&str] = &["m0", "", "m\r\n\0", "storedist"];
pub(super) const KEYS: &[&[&str]] = &[STRINGS, HASHES, LISTS, SETS, SORTED_SETS, PLACES, STREAMS, COUNTERS, MISSING];

/// What makes them.
pub(super) const POPULATION: &[&str] = &[
    "SET s0 10",
    "SET s1 abc EX 5000",
    "SET STORE 5",
    "HSET h0 a 1 b 2",
    "HSET h1 a x",
    "PEXPIRE h1 900000",
    "RPUSH l0 a b a c",
    "RPUSH l1 1 2 3",
    "RPUSH get a",
    "EXPIRE l1 5000",
    "SADD e0 a b c",
    "SADD e1 b c d",
    "SADD BY 1 2",
    "ZADD z0 1 a 2 b 3 c",
    "ZADD z1 2 b 5 LIMIT",
    "ZADD LIMIT 1 a",
    "GEOADD g0 10 20 a 11 21 b",
    "GEOADD {g}1 10 20 c",
    "XADD x0 1-1 f v",
    "XADD x0 2-1 f v",
    "XADD x0 3-1 f v",
    "XGROUP CREATE x0 g 0",
    "XREADGROUP GROUP g a COUNT 2 STREAMS x0 >",
    "XADD x1 1-1 f v",
    "XGROUP CREATE x1 g $",
    "PFADD p0 a b",
    "PFADD p1 c",
];

/// What is added on a server that knows the newer commands.
pub(super) const NEWER_POPULATION: &[&str] =
    &["HPEXPIRE h0 700000 FIELDS 1 a", "HPEXPIRE h1 800000 FIELDS 1 a", "HSET h1 b y LIMIT z"];

pub(super) struct Generator {
    pub(super) rng: Rng,
    /// What DUMP gave.
    pub(super) dump: Vec<u8>,
}

enum Node<'t> {
    Word(&'t str),
    Choice(Vec<Vec<Node<'t>>>),
    Maybe(Vec<Vec<Node<'t>>>),
    Many(Vec<Vec<Node<'t>>>),
}

impl Generator {
    pub(super) fn arguments(&mut self, template: &str) -> Vec<Vec<u8>> {
        let mut tokens = tokens(template);
        let alternatives = parse(&mut tokens);
        let mut args = Vec::new();
        self.one(&alternatives, &mut args);
        args
    }

    fn one(&mut self, alternatives: &[Vec<Node<'_>>], args: &mut Vec<Vec<u8>>) {
        for node in &alternatives[self.rng.usize(..alternatives.len())] {
            match node {
                Node::Word(word) => self.word(word, args),
                Node::Choice(inner) => self.one(inner, args),
                Node::Maybe(inner) if self.rng.bool() => self.one(inner, args),
                Node::Maybe(_) => {}
                Node::Many(inner) => (0..self.rng.usize(1..=3)).for_each(|_| self.one(inner, args)),
            }
        }
    }

    fn word(&mut self, word: &str, args: &mut Vec<Vec<u8>>) {
        let item = match word {
            "string" => self.key(STRINGS),
            "hash" => self.key(HASHES),
            "list" => self.key(LISTS),
            "set" => self.key(SETS),
            "zset" => self.key(SORTED_SETS),
            "geo" => self.key(PLACES),
            "stream" => self.key(STREAMS),
            "hll" => self.key(COUNTERS),
            "any" => self.any_key(),
            "lists" | "zsets" => {
                let count = self.rng.usize(1..=3);
                args.push(count.to_string().into_bytes());
                let keys = if word == "lists" { LISTS } else { SORTED_SETS };
                args.extend((0..count).map(|_| self.key(keys)));
                return;
            }
            "fields" | "pairs" => {
                let count = self.rng.usize(1..=3);
                args.extend([b"FIELDS".to_vec(), count.to_string().into_bytes()]);
                for _ in 0..count {
                    self.word("member", args);
                    if word == "pairs" {
                        self.word("value", args);
                    }
                }
                return;
            }
            "msetex" => {
                let count = self.rng.usize(1..=3);
                args.push(count.to_string().into_bytes());
                for _ in 0..count {
                    self.word("any", args);
                    self.word("value", args);
                }
                return;
            }
            "dump" => self.dump.clone(),
            "value" => match self.rng.u8(..4) {
                0 => self.rng.i32(..).to_string().into_bytes(),
                1 => (0..self.rng.usize(..9)).map(|_| self.rng.u8(..)).collect(),
                _ => self.pick(&["a", "b", "KEEPTTL", "NX", "5"]),
            },
            "member" => self.pick(&["a", "b", "c", "LIMIT", "STORE"]),
            "int" => self.rng.i32(-4..5).to_string().into_bytes(),
            "count" => self.rng.i32(1..4).to_string().into_bytes(),
            "offset" => self.rng.i32(..40).to_string().into_bytes(),
            "bits" => self.pick(&["u8", "i5", "u1"]),
            "score" => self.pick(&["-1.5", "0", "2", "3e1"]),
            "degrees" => self.pick(&["10", "11.5", "20", "-3"]),
            "radius" => self.pick(&["1", "200", "90000"]),
            "unit" => self.pick(&["m", "km", "ft", "mi"]),
            "seconds" => self.pick(&["500", "9000"]),
            "millis" => self.pick(&["500000", "9000000"]),
            "epoch" => self.pick(&["1", "4102444800"]),
            "epoch_ms" => self.pick(&["1", "4102444800000"]),
            "id" => self.pick(&["1-1", "2-1", "5", "9-9"]),
            "bigid" => self.pick(&["9-9", "99999-1"]),
            "lexmin" => self.pick(&["-", "[a", "(b"]),
            "lexmax" => self.pick(&["+", "[z"]),
            "pattern" => self.pick(&["w_*", "#", "nosort", "h0->*", "STORE"]),
            option => option.chars().map(|letter| self.cased(letter)).collect::<String>().into_bytes(),
        };
        args.push(item);
    }

    fn cased(&mut self, letter: char) -> char {
        if self.rng.bool() { letter.to_ascii_lowercase() } else { letter }
    }

    fn pick(&mut self, from: &[&str]) -> Vec<u8> {
        from[self.rng.usize(..from.len())].as_bytes().to_vec()
    }

    /// Mostly one of the right type, sometimes one that is missing or of another.
    fn key(&mut self, right: &[&str]) -> Vec<u8> {
        match self.rng.u8(..20) {
            0 => self.any_key(),
            1..=3 => self.pick(MISSING),
            _ => self.pick(right),
        }
    }

    fn any_key(&mut self) -> Vec<u8> {
        let kind = KEYS[self.rng.usize(..KEYS.len())];
        self.pick(kind)
    }
}

fn tokens(template: &str) -> std::vec::IntoIter<&str> {
    let mut tokens = Vec::new();
    for word in template.split(' ') {
        let mut rest = word;
        while let Some(end) = rest.find(['(', ')', '[', ']', '{', '}', '|']) {
            let (before, behind) = rest.split_at(end);
            tokens.extend((!before.is_empty()).then_some(before));
            tokens.push(&behind[..1]);
            rest = &behind[1..];
        }
        tokens.extend((!rest.is_empty()).then_some(rest));
    }
    tokens.into_iter()
}

/// Alternatives up to a closing bracket, which is taken.
fn parse<'t>(tokens: &mut impl Iterator<Item = &'t str>) -> Vec<Vec<Node<'t>>> {
    let mut alternatives = vec![Vec::new()];
    while let Some(token) = tokens.next() {
        let node = match token {
            ")" | "]" | "}" => break,
            "|" => {
                alternatives.push(Vec::new());
                continue;
            }
            "(" => Node::Choice(parse(tokens)),
            "[" => Node::Maybe(parse(tokens)),
            "{" => Node::Many(parse(tokens)),
            word => Node::Word(word),
        };
        alternatives.last_mut().expect("there is a first").push(node);
    }
    alternatives
}
