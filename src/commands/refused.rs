//! Why the commands that Redis knows, and this table does not take, are refused.

/// The reason for which a command is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotAccepted {
    /// Not a command of Redis 7.0, nor one of the newer ones that are known.
    Unknown,
    /// It only reads.
    ReadOnly,
    /// It waits on the server.
    Blocking,
    /// It administers the server, or is dangerous enough to.
    Admin,
    /// It writes without naming keys.
    Keyless,
    /// It publishes or subscribes.
    PubSub,
    /// It changes or asks the state of a connection.
    Connection,
    /// It is part of a transaction.
    Transaction,
    /// It runs or manages scripts and functions.
    Script,
}

impl NotAccepted {
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::ReadOnly,
        Self::Blocking,
        Self::Admin,
        Self::Keyless,
        Self::PubSub,
        Self::Connection,
        Self::Transaction,
        Self::Script,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::ReadOnly => "read_only",
            Self::Blocking => "blocking",
            Self::Admin => "admin",
            Self::Keyless => "keyless",
            Self::PubSub => "pubsub",
            Self::Connection => "connection",
            Self::Transaction => "transaction",
            Self::Script => "script",
        }
    }

    /// A sentence for the person who sent the command.
    pub fn detail(self) -> &'static str {
        match self {
            Self::Unknown => "this is not a command of Redis 7.0; of newer ones few are accepted, and none of modules",
            Self::ReadOnly => "this command only reads: a delayed read has no reader",
            Self::Blocking => "this command may block the connection it runs on; use the form that does not wait",
            Self::Admin => "this command administers the server or moves its data; it is never run on a task's behalf",
            Self::Keyless => "this command writes without naming keys, so its place in their order is unknown",
            Self::PubSub => "publishing and subscribing are not accepted: a message that comes late has no receiver",
            Self::Connection => "this command concerns a connection, and the one that the task runs on is not yours",
            Self::Transaction => "send a task of type `pipeline` with `mode` set to `atomic` for MULTI and EXEC",
            Self::Script => {
                "send a task of type `lua` with the source in `script`; functions and SHAs are not accepted"
            }
        }
    }
}

/// Sorted by reason, then name.
#[rustfmt::skip]
const REFUSED: [(NotAccepted, &[&str]); 8] = [
    (NotAccepted::ReadOnly, &[
        "BITCOUNT", "BITFIELD_RO", "BITPOS", "COMMAND", "DBSIZE", "DUMP", "EXISTS", "EXPIRETIME", "GEODIST", "GEOHASH",
        "GEOPOS", "GEORADIUSBYMEMBER_RO", "GEORADIUS_RO", "GEOSEARCH", "GET", "GETBIT", "GETRANGE", "HEXISTS", "HGET",
        "HGETALL", "HKEYS", "HLEN", "HMGET", "HRANDFIELD", "HSCAN", "HSTRLEN", "HVALS", "INFO", "KEYS", "LCS",
        "LINDEX", "LLEN", "LOLWUT", "LPOS", "LRANGE", "MEMORY", "MGET", "OBJECT", "PEXPIRETIME", "PFCOUNT", "PTTL",
        "RANDOMKEY", "SCAN", "SCARD", "SDIFF", "SINTER", "SINTERCARD", "SISMEMBER", "SMEMBERS", "SMISMEMBER",
        "SORT_RO", "SRANDMEMBER", "SSCAN", "STRLEN", "SUBSTR", "SUNION", "TIME", "TOUCH", "TTL", "TYPE", "XINFO",
        "XLEN", "XPENDING", "XRANGE", "XREVRANGE", "ZCARD", "ZCOUNT", "ZDIFF", "ZINTER", "ZINTERCARD", "ZLEXCOUNT",
        "ZMSCORE", "ZRANDMEMBER", "ZRANGE", "ZRANGEBYLEX", "ZRANGEBYSCORE", "ZRANK", "ZREVRANGE", "ZREVRANGEBYLEX",
        "ZREVRANGEBYSCORE", "ZREVRANK", "ZSCAN", "ZSCORE", "ZUNION",
    ]),
    (NotAccepted::Blocking, &[
        "BLMOVE", "BLMPOP", "BLPOP", "BRPOP", "BRPOPLPUSH", "BZMPOP", "BZPOPMAX", "BZPOPMIN", "WAIT", "XREAD",
        "XREADGROUP",
    ]),
    (NotAccepted::Admin, &[
        "ACL", "BGREWRITEAOF", "BGSAVE", "CLUSTER", "CONFIG", "DEBUG", "FAILOVER", "LASTSAVE", "LATENCY", "MIGRATE",
        "MODULE", "MONITOR", "PFDEBUG", "PFSELFTEST", "PSYNC", "REPLCONF", "REPLICAOF", "RESTORE-ASKING", "ROLE",
        "SAVE", "SHUTDOWN", "SLAVEOF", "SLOWLOG", "SYNC",
    ]),
    (NotAccepted::Keyless, &["FLUSHALL", "FLUSHDB", "SWAPDB"]),
    (NotAccepted::PubSub, &[
        "PSUBSCRIBE", "PUBLISH", "PUBSUB", "PUNSUBSCRIBE", "SPUBLISH", "SSUBSCRIBE", "SUBSCRIBE", "SUNSUBSCRIBE",
        "UNSUBSCRIBE",
    ]),
    (NotAccepted::Connection, &[
        "ASKING", "AUTH", "CLIENT", "ECHO", "HELLO", "PING", "QUIT", "READONLY", "READWRITE", "RESET", "SELECT",
    ]),
    (NotAccepted::Transaction, &["DISCARD", "EXEC", "MULTI", "UNWATCH", "WATCH"]),
    (NotAccepted::Script, &[
        "EVAL", "EVALSHA", "EVALSHA_RO", "EVAL_RO", "FCALL", "FCALL_RO", "FUNCTION", "SCRIPT",
    ]),
];

/// Why a command is refused that is not in the table. The name is in upper case.
pub(super) fn reason(upper: &[u8]) -> NotAccepted {
    let of = |names: &[&str]| names.iter().any(|name| name.as_bytes() == upper);
    REFUSED.iter().find(|(_, names)| of(names)).map_or(NotAccepted::Unknown, |(reason, _)| *reason)
}

/// All names that have a reason.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    REFUSED.iter().flat_map(|(_, names)| names.iter().copied())
}
