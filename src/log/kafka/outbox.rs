//! What waits to be sent to one partition, in the order in which it came.
//!
//! A parcel is what one append has for the partition: sent whole, in one request. Whoever waits for it gives up at its
//! deadline, and must be told the truth then: as long as no byte of it can have reached a broker, nothing was stored.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
};

use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::record::Outgoing;
use crate::log::AppendError;

/// One request has at most this many records: the answer to the first need not wait for more of them.
pub(super) const MAX_BATCH_RECORDS: usize = 100;
/// And this many bytes, unless one record is larger.
pub(super) const MAX_BATCH_BYTES: usize = 256 << 10;

/// Bytes taken from a bound until it is dropped.
pub(super) struct Room {
    bytes: usize,
    taken: Arc<AtomicUsize>,
}

impl Room {
    /// Takes `bytes` of `bound`, if they are there. What is larger than the whole still gets its turn, alone.
    pub(super) fn take(taken: &Arc<AtomicUsize>, bytes: usize, bound: usize) -> Option<Self> {
        let fits = |taken: usize| (taken == 0 || taken + bytes <= bound).then_some(taken + bytes);
        taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Self { bytes, taken: taken.clone() })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Whether a parcel may have reached a broker, and whether anybody still waits for it.
#[derive(Default)]
struct Fate(AtomicU8);

const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Fate {
    /// About to be sent; false where nobody waits any more, and it must not be.
    fn send(&self) -> bool {
        self.0.fetch_or(SENT, Ordering::AcqRel) & GIVEN_UP == 0
    }

    /// All that was sent was refused.
    fn take_back(&self) {
        self.0.fetch_and(!SENT, Ordering::AcqRel);
    }

    /// Nobody waits any more. Answers whether it may have been stored.
    fn give_up(&self) -> bool {
        self.0.fetch_or(GIVEN_UP, Ordering::AcqRel) & SENT != 0
    }

    fn is_given_up(&self) -> bool {
        self.0.load(Ordering::Acquire) & GIVEN_UP != 0
    }
}

/// What one append has for one partition.
pub(super) struct Parcel {
    pub(super) records: Vec<Outgoing>,
    pub(super) appended_at_ms: i64,
    pub(super) deadline: Instant,
    bytes: usize,
    fate: Arc<Fate>,
    /// An attempt may have stored it.
    in_doubt: bool,
    answer: oneshot::Sender<Result<u64, AppendError>>,
    _room: Arc<Room>,
}

/// Waits for what becomes of a parcel.
pub(super) struct Ticket {
    deadline: Instant,
    fate: Arc<Fate>,
    answer: oneshot::Receiver<Result<u64, AppendError>>,
}

impl Parcel {
    pub(super) fn new(
        records: Vec<Outgoing>,
        appended_at_ms: i64,
        deadline: Instant,
        room: Arc<Room>,
    ) -> (Self, Ticket) {
        let (answer, answered) = oneshot::channel();
        let fate = Arc::<Fate>::default();
        let ticket = Ticket { deadline, fate: fate.clone(), answer: answered };
        let bytes = records.iter().map(Outgoing::wire_size).sum();
        (Self { records, appended_at_ms, deadline, bytes, fate, in_doubt: false, answer, _room: room }, ticket)
    }
}

impl Ticket {
    /// The offset of the parcel's first record; else, at its deadline or before, what is known of it.
    pub(super) async fn answered(self, reason: impl Fn() -> String) -> Result<u64, AppendError> {
        let Self { deadline, fate, answer } = self;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            // At the deadline, or because the outbox is gone.
            Ok(Err(_)) | Err(_) if fate.give_up() => Err(AppendError::FateUnknown),
            Ok(Err(_)) | Err(_) => Err(AppendError::Unavailable { reason: reason() }),
        }
    }
}

/// The parcels for one partition.
#[derive(Default)]
pub(super) struct Outbox {
    parcels: Mutex<VecDeque<Parcel>>,
    filled: Notify,
}

impl Outbox {
    pub(super) fn push(&self, parcel: Parcel) {
        self.parcels().push_back(parcel);
        self.filled.notify_one();
    }

    /// Whether anything waits that anybody still waits for.
    pub(super) fn has_work(&self) -> bool {
        let mut parcels = self.parcels();
        parcels.retain(|parcel| !parcel.fate.is_given_up());
        if parcels.is_empty() {
            parcels.shrink_to(16);
        }
        !parcels.is_empty()
    }

    /// Resolves when something was pushed since the last time.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    /// The next parcels for one request.
    pub(super) fn take(&self, max_bytes: usize) -> Batch {
        let mut batch = Batch::default();
        let mut records = 0;
        let mut parcels = self.parcels();
        while let Some(parcel) = parcels.pop_front() {
            let is_full = records + parcel.records.len() > MAX_BATCH_RECORDS || batch.bytes + parcel.bytes > max_bytes;
            if is_full && !batch.parcels.is_empty() {
                parcels.push_front(parcel);
                break;
            }
            if parcel.fate.send() {
                records += parcel.records.len();
                batch.bytes += parcel.bytes;
                batch.parcels.push(parcel);
            }
        }
        batch
    }

    /// Puts a batch back to where it was taken from. `in_doubt`: it may have been stored.
    pub(super) fn put_back(&self, batch: Batch, in_doubt: bool) {
        let mut parcels = self.parcels();
        for mut parcel in batch.parcels.into_iter().rev() {
            parcel.in_doubt |= in_doubt;
            if !parcel.in_doubt {
                parcel.fate.take_back();
            }
            parcels.push_front(parcel);
        }
        // Whoever takes next looks without waiting to be told.
        drop(parcels);
        self.filled.notify_one();
    }

    /// Tells all who wait that it cannot be done.
    pub(super) fn refuse_all(&self, error: &AppendError) {
        let parcels = std::mem::take(&mut *self.parcels());
        Batch { parcels: parcels.into(), bytes: 0 }.refuse(error);
    }

    fn parcels(&self) -> MutexGuard<'_, VecDeque<Parcel>> {
        self.parcels.lock().expect("nothing panics while it holds this lock")
    }
}

/// Parcels that go in one request.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) parcels: Vec<Parcel>,
    pub(super) bytes: usize,
}

impl Batch {
    /// When nobody waits for it any more.
    pub(super) fn deadline(&self) -> Instant {
        self.parcels.iter().map(|parcel| parcel.deadline).max().unwrap_or_else(Instant::now)
    }

    /// It is durable, from this offset on. Answers the offset after it.
    pub(super) fn stored(self, first: u64) -> u64 {
        let mut next = first;
        for parcel in self.parcels {
            let count = parcel.records.len() as u64;
            // The other end may have gone.
            let _ = parcel.answer.send(Ok(next));
            next += count;
        }
        next
    }

    /// It was refused for good; what an earlier attempt may have stored is in doubt still.
    pub(super) fn refuse(self, error: &AppendError) {
        for parcel in self.parcels {
            let error = if parcel.in_doubt { AppendError::FateUnknown } else { error.clone() };
            let _ = parcel.answer.send(Err(error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::log::Headers;

    const SECOND: Duration = Duration::from_secs(1);

    fn parcel(outbox: &Outbox, values: &[usize]) -> Ticket {
        let record = |length: &usize| Outgoing {
            key: Bytes::new(),
            headers: Headers::default(),
            value: Some(vec![0; *length].into()),
        };
        let taken = Arc::default();
        let room = Room::take(&taken, 1, 1).expect("it is empty");
        let records = values.iter().map(record).collect();
        let (parcel, ticket) = Parcel::new(records, 0, Instant::now() + SECOND, Arc::new(room));
        outbox.push(parcel);
        ticket
    }

    fn sizes(batch: &Batch) -> Vec<usize> {
        batch.parcels.iter().map(|parcel| parcel.records.len()).collect()
    }

    async fn answered(ticket: Ticket) -> Result<u64, AppendError> {
        ticket.answered(|| "away".to_owned()).await
    }

    fn away() -> Result<u64, AppendError> {
        Err(AppendError::Unavailable { reason: "away".to_owned() })
    }

    #[tokio::test(start_paused = true)]
    async fn batch_is_bounded_in_records_and_bytes_but_has_one_parcel() {
        let outbox = Outbox::default();
        let _tickets = [60, 40, 1, 100, 1].map(|count| parcel(&outbox, &vec![1; count]));
        assert_eq!(sizes(&outbox.take(MAX_BATCH_BYTES)), [60, 40]);
        assert_eq!(sizes(&outbox.take(MAX_BATCH_BYTES)), [1]);
        assert_eq!(sizes(&outbox.take(MAX_BATCH_BYTES)), [100]);
        assert_eq!(sizes(&outbox.take(MAX_BATCH_BYTES)), [1]);
        assert!(!outbox.has_work());
        let _tickets = [1000, 10, 10].map(|length| parcel(&outbox, &[length]));
        assert_eq!(sizes(&outbox.take(150)), [1]);
        assert_eq!(sizes(&outbox.take(150)), [1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn each_parcel_is_told_its_own_offset() {
        let outbox = Outbox::default();
        let tickets = [2, 1, 3].map(|count| parcel(&outbox, &vec![1; count]));
        assert_eq!(outbox.take(MAX_BATCH_BYTES).stored(10), 16);
        let mut offsets = Vec::new();
        for ticket in tickets {
            offsets.push(answered(ticket).await.expect("it was stored"));
        }
        assert_eq!(offsets, [10, 12, 13]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_not_sent_by_its_deadline_was_not_stored_and_never_is() {
        let outbox = Outbox::default();
        let ticket = parcel(&outbox, &[1]);
        assert_eq!(answered(ticket).await, away());
        assert!(outbox.take(MAX_BATCH_BYTES).parcels.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_sent_and_not_answered_is_in_doubt() {
        let outbox = Outbox::default();
        let ticket = parcel(&outbox, &[1]);
        let _in_flight = outbox.take(MAX_BATCH_BYTES);
        assert_eq!(answered(ticket).await, Err(AppendError::FateUnknown));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_in_doubt_only_if_an_earlier_attempt_was() {
        let check = async |doubts: &[bool], expected| {
            let outbox = Outbox::default();
            let ticket = parcel(&outbox, &[1]);
            for doubt in doubts {
                let batch = outbox.take(MAX_BATCH_BYTES);
                assert_eq!(sizes(&batch), [1]);
                outbox.put_back(batch, *doubt);
            }
            assert_eq!(answered(ticket).await, expected);
        };
        check(&[false], away()).await;
        check(&[true], Err(AppendError::FateUnknown)).await;
        check(&[true, false], Err(AppendError::FateUnknown)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn batch_that_is_put_back_keeps_its_place() {
        let outbox = Outbox::default();
        let _tickets = [1, 2, 3].map(|count| parcel(&outbox, &vec![1; count]));
        let batch = outbox.take(150);
        assert_eq!(sizes(&batch), [1, 2]);
        outbox.put_back(batch, false);
        assert_eq!(sizes(&outbox.take(MAX_BATCH_BYTES)), [1, 2, 3]);
    }

    #[test]
    fn room_is_given_back() {
        let taken = Arc::default();
        let first = Room::take(&taken, 6, 10).expect("it is empty");
        assert!(Room::take(&taken, 5, 10).is_none());
        drop(first);
        assert!(Room::take(&taken, 50, 10).is_some(), "alone");
    }
}
