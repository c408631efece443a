//! Which waiting units need not run, because a later one leaves nothing of what they would do. Pure, and by itself:
//! what is known of a unit is a [`Stake`], and [`Stake::supersedes`] is the rule. `schedule` finds the units next to
//! each other and keeps those that were superseded until it is known what became of the later one.
//!
//! A later unit supersedes an earlier one on the same key that still waits where
//!
//! - it overwrites the key as a whole, whatever was there (SET, SETEX, PSETEX, DEL, UNLINK, RESTORE REPLACE, MSET and
//!   DEL on each of their keys), and is refused by nothing that is there; not where it may be dropped for being late, as
//!   what is there is to stay then;
//! - the earlier one is one command, of a simple task or of an `each` pipeline, that touches this key and nothing else:
//!   no script, no member of an `atomic` pipeline, no MOVE or COPY, which touch another database, and without an
//!   ordering key, which says that others are to see it;
//! - nothing in between touches the key together with another one (such a unit stands between them in the schedule);
//! - neither of their tasks says `coalesce: false`: such a task runs, and takes nobody's place;
//! - the later one overwrites whenever it runs, or the earlier one does not want that certainty: it is no plain overwrite,
//!   nor one of fields (see below), and neither removes the key nor sets a TTL of what is there, so that nothing stays
//!   that was to be gone;
//! - neither has a version, or both have, and that of the later one is higher: a version that was never written cannot
//!   keep older ones out, and one that turns out stale has not overwritten what has none.
//!
//! It does not matter whether the earlier one may have run under an owner before, even where it must run once: its marker
//! is asked by nobody any more. One whose last try was not answered (a suspect) is not superseded all the same: it runs
//! alone until its fate is known.
//!
//! A unit that was superseded is settled when the later one is, in the same checkpoint: also where that one was too late,
//! since it had replaced the earlier one when it was meant. Where the later one is dead, the earlier one runs after all.
//!
//! # Replays
//!
//! A process that dies between the effect of the later unit and the checkpoint leaves both unfinished. The next one reads
//! the earlier one first, and could run it before it has read the later one. That changes nothing where the later one
//! then runs again whenever that is, and the earlier one is refused by nothing that it finds: both are overwrites, and the
//! later one has no TTL, deadline or `late`, or its key is invalidated when it is too late. Anything else is not
//! sent before a durable checkpoint says how far the log had been read: the next owner reads that far before it sends
//! anything, and finds the same units superseded. (`Window::may_send`)
//!
//! The earlier unit may also have run under an owner before. Where it is one of a row of overwrites or of fields
//! (`rows`), those before it run again, and then so must it, or something that overwrites it. A later one with a TTL or a
//! deadline may turn out too late and do nothing; so it does not supersede plain overwrites and fields: `SET k 1; SET k 2;
//! SET k 3 EX 60` could leave the 1. Nor does it supersede anything that may have superseded these: so what overwrites
//! whenever it runs wants the same certainty for itself.

/// What a unit can do to others on its key, and others to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stake {
    /// A later overwrite may take its place. Only of a unit with one key.
    pub gives_way: bool,
    /// It replaces or removes each of its keys as a whole, whatever was there.
    pub overwrites: bool,
    /// It does so whenever it runs, or removes them, or something newer than it is there.
    pub always: bool,
    /// Only one that overwrites whenever it runs may take its place.
    pub wants_certainty: bool,
    /// Another hash of its only key: where two keys have the same one, nothing may be lost.
    pub check: u64,
    pub version: Option<u64>,
}

impl Stake {
    /// Of a unit that runs, whatever comes.
    pub const NONE: Self =
        Self { gives_way: false, overwrites: false, always: false, wants_certainty: false, check: 0, version: None };

    /// Whether this unit takes the place of an earlier one that waits, on the key of which `check` is the other hash.
    pub fn supersedes(&self, check: u64, earlier: &Self) -> bool {
        let is_newer = match (self.version, earlier.version) {
            (None, None) => true,
            (Some(own), Some(earlier)) => own > earlier,
            (None, Some(_)) | (Some(_), None) => false,
        };
        let is_certain = self.always || !earlier.wants_certainty;
        self.overwrites && earlier.gives_way && earlier.check == check && is_certain && is_newer
    }
}
