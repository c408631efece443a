//! Services that hand tasks in the whole time, and what must have come of them in the end.

use std::{
    sync::{
        Arc, Mutex, RwLock, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::PRODUCE_TIMEOUT;
use crate::harness::{PATIENCE, Redis, Sidecar, rpush, set, sidecar::Address, simple, wait_until};

const CLIENTS: usize = 3;
const KEYS_PER_CLIENT: usize = 4;
/// What is sent for each key at a turn: an element of a list, an increment, and an overwrite.
const KINDS: usize = 3;

/// How long a request waits for its answer at most.
const ANSWERED_WITHIN: Duration = PRODUCE_TIMEOUT.saturating_add(Duration::from_secs(1));

/// Clients, each with keys of its own, so that the order in which the tasks of a key were accepted is known.
pub struct Load {
    addresses: Arc<Mutex<Vec<Address>>>,
    stop: Arc<AtomicBool>,
    paused: Arc<RwLock<()>>,
    accepted: Arc<AtomicUsize>,
    unanswered: Arc<AtomicUsize>,
    /// The longest that an answer has taken, in microseconds.
    slowest: Arc<AtomicU64>,
    /// How many tasks of each kind each key has got.
    counts: Arc<[AtomicUsize]>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts to send, to these sidecars in turn: those that may not spool, as that would change the order.
    pub fn start(addresses: Vec<Address>) -> Self {
        Self::start_with(addresses, false)
    }

    /// Starts to send, each client to a sidecar of its own.
    pub fn start_apart(addresses: Vec<Address>) -> Self {
        Self::start_with(addresses, true)
    }

    fn start_with(addresses: Vec<Address>, apart: bool) -> Self {
        let addresses = Arc::new(Mutex::new(addresses));
        let (stop, paused) = (Arc::<AtomicBool>::default(), Arc::<RwLock<()>>::default());
        let [accepted, unanswered] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let slowest = Arc::<AtomicU64>::default();
        let counts: Arc<[AtomicUsize]> = (0..CLIENTS * KEYS_PER_CLIENT).map(|_| AtomicUsize::new(0)).collect();
        let clients = (0..CLIENTS).map(|number| {
            let client = Client {
                number,
                apart,
                addresses: addresses.clone(),
                accepted: accepted.clone(),
                unanswered: unanswered.clone(),
                slowest: slowest.clone(),
                counts: counts.clone(),
            };
            let (stop, paused) = (stop.clone(), paused.clone());
            std::thread::spawn(move || client.run(&stop, &paused))
        });
        Self { clients: clients.collect(), addresses, stop, paused, accepted, unanswered, slowest, counts }
    }

    /// A sidecar is elsewhere from now on.
    pub fn moved(&self, number: usize, to: Address) {
        self.addresses.lock().expect("no client panics with it")[number] = to;
    }

    /// Waits until so many more tasks were accepted.
    pub fn go_on_for(&self, tasks: usize) {
        let until = self.accepted.load(Ordering::Relaxed) + tasks;
        wait_until("tasks to be accepted", || {
            assert!(self.clients.iter().all(|client| !client.is_finished()), "a client has given up");
            self.accepted.load(Ordering::Relaxed) >= until
        });
    }

    /// Sends nothing until what this returns is dropped.
    pub fn pause(&self) -> RwLockWriteGuard<'_, ()> {
        self.paused.write().expect("no client panics with it")
    }

    /// How many requests were not answered so far.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }

    /// Each request so far was answered, and in time.
    pub fn check_answers(&self) {
        assert_eq!(self.unanswered(), 0, "requests without an answer");
        let slowest = Duration::from_micros(self.slowest.load(Ordering::Relaxed));
        eprintln!("the slowest answer took {slowest:?}");
        assert!(slowest <= ANSWERED_WITHIN, "an answer took {slowest:?}");
    }

    /// Stops to send, and waits until all that was accepted is made: each once, in its order.
    pub fn end(self, redis: &Redis) {
        self.end_when_settled(redis, &[]);
    }

    /// As [`Self::end`], and looks only when these have nothing left: what they got twice, they have settled twice.
    pub fn end_when_settled(mut self, redis: &Redis, sidecars: &[Sidecar]) {
        self.stop();
        self.wait_until_made(redis);
        sidecars.iter().for_each(Sidecar::wait_until_done);
        for (key, count) in self.counts() {
            let expected: Vec<String> = (0..count).map(|number| format!("r{key}-{number}")).collect();
            assert_eq!(redis.list(&format!("list:{key}")), expected, "list:{key}");
            assert_eq!(redis.get(&format!("counter:{key}")), count.to_string(), "counter:{key}");
            assert_eq!(redis.get(&format!("latest:{key}")), count.to_string(), "latest:{key}");
        }
    }

    /// As [`Self::end`], of what repeats tasks: how many were made more than once.
    pub fn end_with_repetitions(mut self, redis: &Redis) -> usize {
        self.stop();
        self.wait_until_made(redis);
        self.counts().map(|(key, count)| redis.list(&format!("list:{key}")).len() - count).sum()
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("no task is refused");
        }
    }

    /// Waits until as much is made as was accepted.
    pub fn wait_until_made(&self, redis: &Redis) {
        for (key, count) in self.counts() {
            let made = || redis.get(&format!("counter:{key}")).parse().unwrap_or(0usize);
            wait_until(&format!("counter:{key} to come to {count}"), || made() >= count);
            wait_until(&format!("list:{key} to come to {count}"), || redis.list(&format!("list:{key}")).len() >= count);
            redis.wait_for_value(&format!("latest:{key}"), &count.to_string());
        }
    }

    fn counts(&self) -> impl Iterator<Item = (usize, usize)> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).enumerate()
    }
}

struct Client {
    number: usize,
    /// It has a sidecar of its own.
    apart: bool,
    addresses: Arc<Mutex<Vec<Address>>>,
    accepted: Arc<AtomicUsize>,
    unanswered: Arc<AtomicUsize>,
    slowest: Arc<AtomicU64>,
    counts: Arc<[AtomicUsize]>,
}

impl Client {
    fn run(self, stop: &AtomicBool, paused: &RwLock<()>) {
        for turn in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let goes_on = paused.read().expect("nobody panics with it");
            let key = self.number * KEYS_PER_CLIENT + turn % KEYS_PER_CLIENT;
            let count = self.counts[key].load(Ordering::Relaxed);
            self.send(turn, &rpush(&format!("r{key}-{count}"), &format!("list:{key}")));
            self.send(turn, &simple(&format!("i{key}-{count}"), "INCR", &[&format!("counter:{key}")]));
            self.send(turn, &set(&format!("s{key}-{count}"), &format!("latest:{key}"), &(count + 1).to_string()));
            self.counts[key].store(count + 1, Ordering::Relaxed);
            self.accepted.fetch_add(KINDS, Ordering::Relaxed);
            drop(goes_on);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What got no answer is repeated with its id, elsewhere: it may be stored or not.
    fn send(&self, turn: usize, task: &Value) {
        let deadline = Instant::now() + PATIENCE;
        for attempt in turn.. {
            let address = {
                let addresses = self.addresses.lock().expect("no client panics with it");
                addresses[if self.apart { self.number } else { attempt } % addresses.len()]
            };
            let begun = Instant::now();
            match address.post(task) {
                Ok(answer) if answer.status == 202 => {
                    self.slowest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                    return;
                }
                Ok(answer) => panic!("{}: {}", answer.status, answer.body),
                Err(error) => assert!(Instant::now() < deadline, "no answer: {error}"),
            }
            self.unanswered.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
