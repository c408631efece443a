//! Whether there is room for this process in its group.

use std::time::Duration;

use tokio::time::Instant;

use super::{FIRST_BACKOFF, Member, targets};

/// Members beyond one for each partition that a group may have, so that one of them can take over at once.
const STAND_BYS: usize = 2;
/// How often a process that is left out looks whether there is room; at first after one session, as some members may be
/// dead already.
const ROOM_INTERVAL: Duration = Duration::from_secs(30);

/// Whether the group has room for one more. It is asked for before a new member joins: every join disturbs all members,
/// and more members than partitions are of no use.
pub(super) enum Room {
    Unknown { look_at: Instant },
    None { look_at: Instant },
    Found,
}

impl Room {
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self {
            Self::Unknown { look_at } | Self::None { look_at } => Some(*look_at),
            Self::Found => None,
        }
    }
}

impl Member {
    /// Whether the size of the group is to be looked at; it goes to [`Self::size_seen`].
    pub(in crate::log::kafka::group) fn wants_size(&self, now: Instant) -> bool {
        let (Room::Unknown { look_at } | Room::None { look_at }) = self.room else {
            return false;
        };
        self.has_coordinator && self.seen.is_some() && self.failure.is_none() && now >= look_at
    }

    pub(in crate::log::kafka::group) fn size_seen(&mut self, members: usize, now: Instant) {
        if members < self.units() + STAND_BYS {
            self.room = Room::Found;
            return;
        }
        let wait = if matches!(self.room, Room::None { .. }) { ROOM_INTERVAL } else { self.settings.session };
        self.room = Room::None { look_at: now + wait.mul_f64(0.75 + fastrand::f64() / 2.0) };
    }

    /// Where nobody tells the size, the group decides by itself.
    pub(in crate::log::kafka::group) fn size_unknown(&mut self, is_permanent: bool, now: Instant) {
        self.room = if is_permanent { Room::Found } else { Room::Unknown { look_at: now + FIRST_BACKOFF } };
    }

    /// How many members can have something.
    fn units(&self) -> usize {
        let Some(seen) = &self.seen else {
            return 0;
        };
        let targets = targets(&self.settings.topics, seen);
        let partitions = targets.iter().map(|target| target.topics.iter().map(|(_, count)| *count).max().unwrap_or(0));
        partitions.map(|count| usize::try_from(count).unwrap_or(0)).sum()
    }

    /// One that is in comes in again; a static member has its place.
    pub(super) fn is_let_in(&self) -> bool {
        matches!(self.room, Room::Found) || !self.identity.member_id.is_empty() || self.settings.instance_id.is_some()
    }
}
