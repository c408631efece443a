//! What a server's error means, as data: Redis 6 to 8, and what proxies in front of it say.
//!
//! A row fits when its code is the error's code (`*`: any), its pattern occurs in the error's text (ASCII case does not
//! matter; empty: any text), and it is meant for what answered. The first row that fits decides, so the order is part
//! of the table: the state of the target first, then what only a script can say, then what is wrong with the unit, then
//! rows that fit everything.
//!
//! Why a script is judged by other rows: Redis checks its own state before a script's *first* write and never after it
//! (a script that has begun to write is not stopped), so the rows about the target prove that nothing was written.
//! Every other error of a running script comes from its middle, and Redis does not roll back.

use super::{Executed, FailureClass, Origin, ReasonClass};

/// What of the server's text may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Text {
    /// The text is the server's own; what it quotes is cut.
    Keep,
    /// The text may be the user's: the row's own words stand for it.
    Omit,
    /// Nobody knows whose text it is: the unit's arguments are cut out of it.
    Scrub,
}

#[derive(Debug)]
pub(super) struct Row {
    code: &'static str,
    pattern: &'static str,
    /// None: whatever answered.
    origin: Option<Origin>,
    pub(super) class: FailureClass,
    pub(super) executed: Executed,
    pub(super) reason: ReasonClass,
    pub(super) text: Text,
    /// What it means and what ends it.
    pub(super) says: &'static str,
}

impl Row {
    fn fits(&self, code: &str, message: &str, origin: Origin) -> bool {
        (self.code == "*" || self.code == code)
            && self.origin.is_none_or(|only| only == origin)
            && contains_ignoring_case(message, self.pattern)
    }
}

/// The row for an error. `message` has its quotes cut: what the server only echoes must not decide.
pub(super) fn find(code: &str, message: &str, origin: Origin) -> &'static Row {
    if origin == Origin::InsideScript {
        return &SCRIPT_FAILED;
    }
    TABLE.iter().find(|row| row.fits(code, message, origin)).unwrap_or(&UNKNOWN)
}

/// Whether some row names the code, so that it cannot be a word of the user's.
pub(super) fn knows(code: &str) -> bool {
    TABLE.iter().any(|row| row.code == code)
}

fn contains_ignoring_case(text: &str, pattern: &str) -> bool {
    pattern.is_empty()
        || text.as_bytes().windows(pattern.len()).any(|window| window.eq_ignore_ascii_case(pattern.as_bytes()))
}

const fn hold(code: &'static str, pattern: &'static str, says: &'static str) -> Row {
    Row {
        code,
        pattern,
        origin: None,
        class: FailureClass::Hold,
        executed: Executed::No,
        reason: ReasonClass::Unavailable,
        text: Text::Keep,
        says,
    }
}

/// For what is known by its text only, and so never believed of a script.
const fn reply_hold(code: &'static str, pattern: &'static str, says: &'static str) -> Row {
    Row { origin: Some(Origin::Command), ..hold(code, pattern, says) }
}

/// For what a cluster answers to a client that takes it for a single server.
const fn is_cluster(code: &'static str) -> Row {
    Row { text: Text::Omit, ..hold(code, "", "the target is a Redis Cluster, but is configured as a single server") }
}

const fn dead(code: &'static str, pattern: &'static str, reason: ReasonClass, says: &'static str) -> Row {
    Row {
        code,
        pattern,
        origin: Some(Origin::Command),
        class: FailureClass::Dead,
        executed: Executed::No,
        reason,
        text: Text::Keep,
        says,
    }
}

/// For what refuses a script before it runs.
const fn refused_script(code: &'static str, pattern: &'static str, reason: ReasonClass, says: &'static str) -> Row {
    Row { origin: Some(Origin::Script), ..dead(code, pattern, reason, says) }
}

const fn backoff(code: &'static str, text: Text, says: &'static str) -> Row {
    Row {
        code,
        pattern: "",
        origin: Some(Origin::Command),
        class: FailureClass::Backoff,
        executed: Executed::No,
        reason: ReasonClass::RetriesExhausted,
        text,
        says,
    }
}

/// A server that this table has never heard of may mean anything. It gets the attempts that the task has.
static UNKNOWN: Row = backoff("*", Text::Scrub, "an error that is in no table");

/// Anything that ends a script midway.
const SCRIPT_FAILED: Row = Row {
    executed: Executed::Partly,
    text: Text::Omit,
    ..refused_script("*", "", ReasonClass::ScriptError, "the script failed; what it wrote before stays written")
};

#[rustfmt::skip]
static TABLE: &[Row] = &[
    // The state of the target. Refused before anything was done, whatever was sent.
    hold("LOADING", "", "the server is loading its data; ends by itself"),
    hold("MASTERDOWN", "", "a replica that has lost its primary and serves nothing stale"),
    hold("ERR", "on a stale replica", "as MASTERDOWN, but said of a script's first command"),
    hold("READONLY", "", "a replica, perhaps a primary until a moment ago; the primary must be found again"),
    hold("CLUSTERDOWN", "", "slots are not served; ends when the cluster has recovered"),
    hold("NOREPLICAS", "", "fewer replicas are connected than min-replicas-to-write asks for"),
    hold("MISCONF", "", "the server cannot persist and has stopped writes; its disk needs an operator"),
    hold("OOM", "", "the server is at its maxmemory; deletes still pass and end it"),
    hold("BUSY", "", "a script or function runs for too long; ends with it, or by SCRIPT KILL"),
    reply_hold("ERR", "max number of clients", "the server is at its maxclients"),
    hold("NOAUTH", "", "the server asks for a password and the URL has none, or has lost its validity"),
    hold("WRONGPASS", "", "the URL's user or password is wrong, perhaps rotated"),
    hold("DENIED", "", "the server is in protected mode"),
    hold("NOPROTO", "", "the server does not speak this version of the protocol"),
    reply_hold("ERR", "invalid password", "the URL's password is wrong, perhaps rotated"),
    reply_hold("ERR", "without any password configured", "the URL has a password and the server asks for none"),
    reply_hold("ERR", "no password is set", "the URL has a password and the server asks for none"),
    reply_hold("ERR", "DB index is out of range", "the URL's database number is above the server's"),
    reply_hold("ERR", "SELECT is not allowed in cluster mode", "the URL names a database, but a Cluster has only one"),
    is_cluster("MOVED"),
    is_cluster("ASK"),
    hold("no", "upstream host", "a proxy has no server behind it"),
    reply_hold("ERR", "illegal address", "the server's allow-list does not have this client's address"),
    Row { class: FailureClass::Ambiguous, executed: Executed::Maybe, reason: ReasonClass::Ambiguous,
        ..hold("upstream", "failure", "a proxy lost the server behind it while it waited for the answer") },

    // The protocol between Redrive and the server.
    Row { class: FailureClass::Route, ..hold("NOSCRIPT", "", "the script is sent again with its source") },

    // Scripts. What refuses one before it runs, and then everything that ends one midway.
    refused_script("NOPERM", "permissions to", ReasonClass::NoPermission, "the user may not run it"),
    refused_script("ERR", "unknown command", ReasonClass::UnknownCommand, "the server has no EVAL"),
    Row { text: Text::Omit,
        ..refused_script("ERR", "compiling script", ReasonClass::ScriptError, "the script does not compile") },
    SCRIPT_FAILED,

    // What is wrong with the unit itself, whatever is stored.
    dead("NOPERM", "", ReasonClass::NoPermission, "the user may not run the command, or not on these keys"),
    dead("ERR", "the user executing the script can't", ReasonClass::NoPermission, "as NOPERM, in a script of ours"),
    dead("ERR", "ACL failure in script", ReasonClass::NoPermission, "the same since 8.0"),
    dead("ERR", "unknown redis command", ReasonClass::UnknownCommand, "as below, in a script of ours"),
    dead("ERR", "wrong number of args", ReasonClass::BadArgument, "as below, in a script of ours"),
    dead("ERR", "unknown command", ReasonClass::UnknownCommand, "the server is too old, or it was renamed"),
    dead("ERR", "unknown subcommand", ReasonClass::UnknownCommand, "the server is too old for it"),
    dead("ERR", "wrong number of arguments", ReasonClass::BadArgument, "the command takes more or fewer"),
    dead("ERR", "syntax error", ReasonClass::BadArgument, "the options do not go together"),
    dead("ERR", "invalid expire time", ReasonClass::BadArgument, "zero, negative, or too large"),
    dead("ERR", "invalid bitfield type", ReasonClass::BadArgument, "BITFIELD knows u1 to u63 and i1 to i64"),
    dead("ERR", "invalid longitude,latitude", ReasonClass::BadArgument, "not a place on earth"),
    dead("ERR", "invalid stream id", ReasonClass::BadArgument, "not of the form milliseconds-sequence"),
    dead("ERR", "hash value is not", ReasonClass::WrongState, "the field's value is no number"),
    dead("ERR", "not a valid float", ReasonClass::BadArgument, "an argument or the stored value is no number"),
    dead("ERR", "is not a float", ReasonClass::BadArgument, "an argument is no number"),
    dead("ERR", "timeout is not", ReasonClass::BadArgument, "an argument is no number"),
    dead("CROSSSLOT", "", ReasonClass::CrossSlot, "keys of one command lie in several slots of a Cluster"),

    // What is stored does not allow it. A retry does not cure that.
    dead("WRONGTYPE", "", ReasonClass::WrongType, "the key holds a value of another type"),
    dead("BUSYKEY", "", ReasonClass::WrongState, "the key exists, and RESTORE was not told to replace it"),
    dead("NOGROUP", "", ReasonClass::WrongState, "the stream or its consumer group does not exist"),
    dead("ERR", "value is not an integer or out of range", ReasonClass::WrongState, "one of the two is no integer"),
    dead("ERR", "would overflow", ReasonClass::WrongState, "the sum does not fit 64 bits"),
    dead("ERR", "would produce NaN or Infinity", ReasonClass::WrongState, "the sum is no number"),
    dead("ERR", "no such key", ReasonClass::WrongState, "RENAME, LSET and others need the key to exist"),
    dead("ERR", "index out of range", ReasonClass::WrongState, "the list is shorter than that"),
    dead("ERR", "offset is out of range", ReasonClass::WrongState, "the offset is beyond the longest string"),
    dead("ERR", "string exceeds maximum allowed size", ReasonClass::WrongState, "longer than proto-max-bulk-len"),
    dead("ERR", "smaller than the target stream top item", ReasonClass::WrongState, "the stream has a newer entry"),
    dead("ERR", "requires the key to exist", ReasonClass::WrongState, "XGROUP needs the stream, or MKSTREAM"),

    // What passes by itself.
    backoff("TRYAGAIN", Text::Keep, "keys of one command lie on two nodes while their slot moves"),
];
