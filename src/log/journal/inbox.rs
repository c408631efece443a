//! The hand-over between many callers and one writer: what is asked for goes in by the batch, and what became of it
//! comes back by the batch.
//!
//! Waking a task of another thread costs a system call each, so an answered batch wakes *one* of those who wait for
//! it; that one wakes the others, from within the runtime, where it costs next to nothing. The duty passes on with
//! the batch's lock: whoever finds the answer, or gives up waiting when it is there, wakes all who still sleep. The one
//! may never be looked at again without being given up; then the writer wakes the others after all, a little later.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::chain::Item;
use crate::log::{AppendError, Checkpoint, CommitError, Epoch};

/// What waits for the writer is bounded by this: by no less than `admission.max_inflight_bytes` is by default, as what is
/// refused here was read and looked at in vain.
pub const MAX_QUEUED_BYTES: usize = 32 << 20;
/// What is stored together or not at all.
pub const MAX_REQUEST_BYTES: usize = 8 << 20;
/// One write and one sync at most, unless a single request is larger.
const MAX_BATCH_BYTES: usize = 1 << 20;
const MAX_BATCH_ITEMS: usize = 1024;
/// Counted for each item beside its bytes.
pub const ITEM_OVERHEAD: usize = 64;

/// When the queue to the writer is full, it is so for about as long as a few syncs take.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// How long the one who was woken has to wake the others.
const GRACE: Duration = Duration::from_millis(20);

/// Something for the writer to do. Done in the order in which it was asked for.
pub enum Work {
    Append(Batch),
    Commit { epoch: Epoch, checkpoint: Checkpoint, answer: oneshot::Sender<Result<(), CommitError>> },
    Assign { answer: oneshot::Sender<(Epoch, Option<Checkpoint>)> },
    Forget(Vec<u64>),
}

pub struct Batch {
    pub items: Vec<Item>,
    bytes: usize,
    answer: Arc<Answer>,
}

impl Batch {
    fn new() -> Self {
        Self { items: Vec::new(), bytes: 0, answer: Arc::default() }
    }

    /// Tells all who wait: the number of the first item, or why there is none.
    pub fn answer(self, result: Result<u64, AppendError>) {
        self.answer.give(result);
    }

    fn has_room(&self, items: usize, bytes: usize) -> bool {
        self.items.len() + items <= MAX_BATCH_ITEMS && self.bytes + bytes <= MAX_BATCH_BYTES
    }
}

impl Drop for Batch {
    /// A batch that the writer did not come to answer, because it broke off. An answer given before stays.
    fn drop(&mut self) {
        self.answer.give(Err(AppendError::FateUnknown));
    }
}

#[derive(Default)]
pub struct Inbox {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    work: VecDeque<Work>,
    bytes: usize,
    /// The answers of batches that were taken, oldest first, until nobody sleeps who waits for them.
    answers: VecDeque<Arc<Answer>>,
    writer_sleeps: bool,
    closed: bool,
}

impl Inbox {
    /// Queues items that are stored together or not at all.
    pub fn append(&self, items: impl ExactSizeIterator<Item = Item>, bytes: usize) -> Result<Ticket, AppendError> {
        let count = items.len();
        let weight = bytes + count * ITEM_OVERHEAD;
        let mut state = self.lock();
        if state.closed {
            return Err(AppendError::Closed);
        }
        // A request that is larger than the bound alone still gets its turn, alone.
        if state.bytes > 0 && state.bytes + weight > MAX_QUEUED_BYTES {
            return Err(AppendError::Full { retry_after: BUSY_RETRY });
        }
        state.bytes += weight;
        if !matches!(state.work.back(), Some(Work::Append(batch)) if batch.has_room(count, weight)) {
            state.work.push_back(Work::Append(Batch::new()));
        }
        let Some(Work::Append(batch)) = state.work.back_mut() else {
            unreachable!("it is there or was just put there");
        };
        let first = batch.items.len() as u64;
        batch.items.extend(items);
        batch.bytes += weight;
        let ticket = Ticket { answer: batch.answer.clone(), first, place: None };
        self.wake_writer(state);
        Ok(ticket)
    }

    /// Queues anything else; false where the journal is closed.
    pub fn ask(&self, work: Work) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        // A commit that nobody waits for any more would only pile up behind a disk that hangs.
        state.work.retain(|queued| !matches!(queued, Work::Commit { answer, .. } if answer.is_closed()));
        state.work.push_back(work);
        self.wake_writer(state);
        true
    }

    /// Takes no more work. What is queued is still done.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        self.wake_writer(state);
    }

    /// The next piece of work, waited for; `None` when the inbox is closed and empty. What was taken before has been
    /// answered or dropped by now. `idle` is called before waiting.
    pub fn take(&self, mut idle: impl FnMut()) -> Option<Work> {
        let mut state = self.lock();
        let mut rested = false;
        loop {
            let look_again = match state.sleepers_wait_until() {
                Some(until) if until <= Instant::now() || (state.closed && state.work.is_empty()) => {
                    let late = state.answers.pop_front();
                    drop(state);
                    late.iter().for_each(|answer| wake_all(answer.lock()));
                    state = self.lock();
                    continue;
                }
                until => until,
            };
            if let Some(work) = state.work.pop_front() {
                if let Work::Append(batch) = &work {
                    state.bytes -= batch.bytes;
                    state.answers.push_back(batch.answer.clone());
                }
                return Some(work);
            }
            if state.closed {
                return None;
            }
            if !mem::replace(&mut rested, true) {
                state.work.shrink_to(16);
                idle();
            }
            state.writer_sleeps = true;
            state = match look_again {
                Some(at) => {
                    let left = at.saturating_duration_since(Instant::now());
                    self.filled.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.filled.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.writer_sleeps = false;
        }
    }

    fn wake_writer(&self, state: MutexGuard<'_, State>) {
        let sleeps = state.writer_sleeps;
        drop(state);
        if sleeps {
            self.filled.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When the writer has to wake those who still wait for the oldest answer; none where nobody sleeps.
    fn sleepers_wait_until(&mut self) -> Option<Instant> {
        while let Some(oldest) = self.answers.front() {
            let until = oldest.lock().sleepers_wait_until;
            if until.is_some() {
                return until;
            }
            self.answers.pop_front();
        }
        None
    }
}

/// Waits for the answer to a request: the number of its first item.
///
/// # Cancellation
///
/// Dropping it takes nothing back.
pub struct Ticket {
    answer: Arc<Answer>,
    /// The request's first item within the batch.
    first: u64,
    place: Option<usize>,
}

#[derive(Default)]
struct Answer(Mutex<Answering>);

#[derive(Default)]
struct Answering {
    result: Option<Result<u64, AppendError>>,
    sleepers: Vec<Option<Waker>>,
    /// Set with the result while there are others to wake than the one who was woken.
    sleepers_wait_until: Option<Instant>,
}

impl Answer {
    fn give(&self, result: Result<u64, AppendError>) {
        let mut answering = self.lock();
        if answering.result.is_some() {
            return;
        }
        answering.result = Some(result);
        let one = answering.sleepers.iter_mut().find_map(Option::take);
        if answering.sleepers.iter().any(Option::is_some) {
            answering.sleepers_wait_until = Some(Instant::now() + GRACE);
        }
        drop(answering);
        if let Some(waker) = one {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answering> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn wake_all(mut answering: MutexGuard<'_, Answering>) {
    let sleepers = mem::take(&mut answering.sleepers);
    answering.sleepers_wait_until = None;
    drop(answering);
    sleepers.into_iter().flatten().for_each(Waker::wake);
}

impl Future for Ticket {
    type Output = Result<u64, AppendError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.clone();
        let mut answering = answer.lock();
        if let Some(result) = answering.result.clone() {
            wake_all(answering);
            return Poll::Ready(result.map(|first| first + self.first));
        }
        match self.place {
            Some(place) => match &mut answering.sleepers[place] {
                Some(waker) => waker.clone_from(context.waker()),
                empty => *empty = Some(context.waker().clone()),
            },
            None => {
                self.place = Some(answering.sleepers.len());
                answering.sleepers.push(Some(context.waker().clone()));
            }
        }
        Poll::Pending
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut answering = self.answer.lock();
        if answering.result.is_some() {
            // It may have been the one that was woken.
            wake_all(answering);
        } else if let Some(place) = self.place {
            answering.sleepers[place] = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::atomic::{AtomicUsize, Ordering},
        task::Wake,
    };

    use bytes::Bytes;

    use super::*;
    use crate::log::journal::frame::{Kind, Pair};

    #[derive(Default)]
    struct Counter(AtomicUsize);

    /// Says each time that it is woken.
    struct Bell(std::sync::mpsc::Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.send(()).expect("somebody listens");
        }
    }

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn append(inbox: &Inbox, bytes: usize) -> Result<Ticket, AppendError> {
        let pair = Pair { first: Bytes::new(), second: Bytes::new() };
        inbox.append(std::iter::once((Kind::Record, pair)), bytes)
    }

    fn take_batch(inbox: &Inbox) -> Batch {
        match inbox.take(|| ()) {
            Some(Work::Append(batch)) => batch,
            _ => panic!("a batch was queued"),
        }
    }

    /// Tickets of one batch, each polled once by its own task.
    fn waiting(inbox: &Inbox, count: usize) -> Vec<(Pin<Box<Ticket>>, Arc<Counter>)> {
        let wait = |_| {
            let mut ticket = Box::pin(append(inbox, 10).expect("there is room"));
            let counter = Arc::new(Counter::default());
            assert!(ticket.as_mut().poll(&mut Context::from_waker(&counter.clone().into())).is_pending());
            (ticket, counter)
        };
        (0..count).map(wait).collect()
    }

    fn woken(waiting: &[(Pin<Box<Ticket>>, Arc<Counter>)]) -> Vec<usize> {
        let woken =
            |(at, (_, counter)): (usize, &(_, Arc<Counter>))| (counter.0.load(Ordering::Relaxed) > 0).then_some(at);
        waiting.iter().enumerate().filter_map(woken).collect()
    }

    #[test]
    fn answered_batch_wakes_one_and_that_one_the_others() {
        let inbox = Inbox::default();
        let mut waiting = waiting(&inbox, 64);
        take_batch(&inbox).answer(Ok(100));
        let [first] = woken(&waiting)[..] else { panic!("{:?} were woken", woken(&waiting)) };
        let mut context = Context::from_waker(Waker::noop());
        assert_eq!(waiting[first].0.as_mut().poll(&mut context), Poll::Ready(Ok(100 + first as u64)));
        assert_eq!(woken(&waiting).len(), 64);
        for (at, (ticket, _)) in waiting.iter_mut().enumerate() {
            assert_eq!(ticket.as_mut().poll(&mut context), Poll::Ready(Ok(100 + at as u64)));
        }
    }

    #[test]
    fn giving_up_passes_the_wake_up_on() {
        let inbox = Inbox::default();
        let mut waiting = waiting(&inbox, 3);
        drop(waiting.remove(1));
        take_batch(&inbox).answer(Ok(0));
        let [first] = woken(&waiting)[..] else { panic!("{:?} were woken", woken(&waiting)) };
        drop(waiting.remove(first));
        assert_eq!(woken(&waiting), [0]);
    }

    #[test]
    fn one_who_is_never_looked_at_again_holds_nobody_up() {
        let inbox = Inbox::default();
        let (bell, rung) = std::sync::mpsc::channel();
        let waker = Waker::from(Arc::new(Bell(bell)));
        let mut tickets: Vec<Ticket> = (0..3).map(|_| append(&inbox, 10).expect("there is room")).collect();
        for ticket in &mut tickets {
            assert!(Pin::new(ticket).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        take_batch(&inbox).answer(Ok(0));
        rung.try_recv().expect("one is woken at once");
        assert!(rung.try_recv().is_err(), "and one only");
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(inbox.take(|| ()).is_none(), "there is no work"));
            for _ in 0..2 {
                rung.recv_timeout(Duration::from_secs(60)).expect("the others are woken while the writer waits");
            }
            inbox.close();
        });
    }

    #[test]
    fn closing_writer_leaves_nobody_asleep() {
        let inbox = Inbox::default();
        let waiting = waiting(&inbox, 3);
        take_batch(&inbox).answer(Ok(0));
        inbox.close();
        assert!(inbox.take(|| ()).is_none());
        assert_eq!(woken(&waiting), [0, 1, 2]);
    }

    #[test]
    fn batch_that_is_dropped_leaves_nobody_waiting() {
        let inbox = Inbox::default();
        let ticket = pin!(append(&inbox, 10).expect("there is room"));
        drop(take_batch(&inbox));
        assert_eq!(ticket.poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(AppendError::FateUnknown)));
    }

    #[test]
    fn what_waits_is_written_in_few_batches() {
        let inbox = Inbox::default();
        let tickets: Vec<Ticket> = (0..1500).map(|_| append(&inbox, 10).expect("there is room")).collect();
        assert_eq!([take_batch(&inbox).items.len(), take_batch(&inbox).items.len()], [MAX_BATCH_ITEMS, 476]);
        drop(tickets);
    }

    #[test]
    fn bytes_that_wait_are_bounded_until_they_are_taken() {
        let inbox = Inbox::default();
        let _tickets: Vec<Ticket> = (0..31).map(|_| append(&inbox, 1 << 20).expect("there is room")).collect();
        assert!(matches!(append(&inbox, 1 << 20), Err(AppendError::Full { .. })));
        drop(take_batch(&inbox));
        assert!(append(&inbox, 1 << 20).is_ok());
    }

    #[test]
    fn commit_that_nobody_waits_for_is_not_made() {
        let inbox = Inbox::default();
        let commit = |watermark| {
            let (answer, committed) = oneshot::channel();
            let checkpoint = Checkpoint { watermark, state: Bytes::new() };
            assert!(inbox.ask(Work::Commit { epoch: Epoch(1), checkpoint, answer }));
            committed
        };
        drop(commit(1));
        let _waiting = commit(2);
        inbox.close();
        assert!(matches!(inbox.take(|| ()), Some(Work::Commit { checkpoint, .. }) if checkpoint.watermark == 2));
        assert!(inbox.take(|| ()).is_none());
    }
}
