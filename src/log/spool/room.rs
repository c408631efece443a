//! Room in the spool, reserved for each request before anything of it is sent anywhere: so a request whose fate the
//! remote log leaves open can always be spooled.
//!
//! A request is let in while the journal has room by its rules for appends for all that is under way. It is stored by
//! other rules, which allow the journal's reserve too; what is under way is bounded to half of that. So what came to
//! be in the journal meanwhile takes no reserved room away.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::log::{AppendError, journal::JournalLog};

/// What is under way ends within seconds.
const BUSY_RETRY: Duration = Duration::from_secs(1);
/// As the journal says when it is full.
const FULL_RETRY: Duration = Duration::from_secs(5);
/// How long the file system is believed to have the room that it had.
const SPACE_IS_VALID: Duration = Duration::from_millis(100);
/// Beginning a segment takes this at most, beside what is put into it.
const NEW_SEGMENT_BYTES: u64 = 8 << 10;

pub struct Room {
    journal: Arc<JournalLog>,
    max_bytes: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    bytes: u64,
    targets: HashMap<Arc<str>, u64>,
    /// What the file system had left, and when.
    space: Option<(Instant, u64)>,
}

impl Room {
    /// At most `max_bytes` are reserved at a time.
    pub fn new(journal: Arc<JournalLog>, max_bytes: u64) -> Arc<Self> {
        Arc::new(Self { journal, max_bytes, held: Mutex::default() })
    }

    /// Reserves room for a request.
    pub fn reserve(self: &Arc<Self>, target: &Arc<str>, bytes: u64) -> Result<Reservation, AppendError> {
        let mut held = self.lock();
        // One that is larger than the bound alone still gets its turn, alone.
        if held.bytes > 0 && held.bytes + bytes > self.max_bytes {
            return Err(AppendError::Full { retry_after: BUSY_RETRY });
        }
        let of_target = held.targets.get(target).copied().unwrap_or(0) + bytes;
        self.journal.room(target, with_overhead(of_target))?;
        if self.space(&mut held)? < with_overhead(held.bytes + bytes) {
            return Err(AppendError::Full { retry_after: FULL_RETRY });
        }
        held.bytes += bytes;
        match held.targets.get_mut(target) {
            Some(bytes) => *bytes = of_target,
            None => drop(held.targets.insert(target.clone(), of_target)),
        }
        Ok(Reservation { room: self.clone(), target: target.clone(), bytes })
    }

    /// What the file system has left.
    fn space(&self, held: &mut Held) -> Result<u64, AppendError> {
        let now = Instant::now();
        match held.space {
            Some((at, bytes)) if now.duration_since(at) < SPACE_IS_VALID => Ok(bytes),
            _ => {
                let bytes = self.journal.free_bytes();
                let bytes = bytes.map_err(|error| AppendError::Unavailable { reason: error.to_string() })?;
                held.space = Some((now, bytes));
                Ok(bytes)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the journal's files may grow by, for that many bytes of records.
fn with_overhead(bytes: u64) -> u64 {
    bytes + bytes / 4 + NEW_SEGMENT_BYTES
}

/// Room for a request, until it is stored or known not to be.
pub struct Reservation {
    room: Arc<Room>,
    target: Arc<str>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut held = self.room.lock();
        held.bytes -= self.bytes;
        if let Some(bytes) = held.targets.get_mut(&self.target) {
            *bytes -= self.bytes;
        }
    }
}
