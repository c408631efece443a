//! Lives of a spool by chance: clients append one after the other, the remote comes and goes, the process ends in
//! order, by a crash, or with the power; and the next one goes on. In the end, of the remote log:
//!
//! - Every acknowledged record is in it, and none that was refused.
//! - A record that was acknowledged before another was sent is in front of it, and so is its last repetition.
//! - A record is there twice only where the remote left its fate open, or where a process ended before it had noted
//!   that it was forwarded; and then those form the head of what the next process finds.
//!
//! That this would be noticed is shown by planting bugs. `REDRIVE_SPOOL_CASES` sets how many lives are led, from a
//! random seed on, which is printed with what was found; `REDRIVE_SPOOL_SEED` sets the first.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::stream::{self, StreamExt};

use super::{super::SPOOLED_OFFSET, remote::Weather, *};
use crate::log::{
    AppendError,
    conformance::{tail, values},
    journal::tests::sim::{Faults, SimDisk},
};

const LANES: [&str; 2] = ["normal", "high"];
const CLIENTS: usize = 4;

#[tokio::test]
async fn order_and_number_survive_whatever_dies() {
    let asked = |name: &str| std::env::var(name).ok().map(|number| number.parse::<u64>().expect("a number"));
    let soak = asked("REDRIVE_SPOOL_CASES");
    let first = asked("REDRIVE_SPOOL_SEED").unwrap_or_else(|| if soak.is_some() { fastrand::u64(..) } else { 0 });
    let seeds = (0..soak.unwrap_or(200)).map(|case| first.wrapping_add(case));
    if let Some((seed, found)) = find(seeds, None).await {
        panic!("seed {seed}: {found}");
    }
}

#[tokio::test]
async fn planted_bugs_are_found() {
    for bug in [Bug::DirectPastSpool, Bug::DirectBeforeCheckpoint] {
        assert!(find(0..3_000, Some(bug)).await.is_some(), "{bug:?} was not found");
    }
}

/// The first case in which something is wrong, of several that are led at a time.
async fn find(seeds: impl Iterator<Item = u64>, bug: Option<Bug>) -> Option<(u64, String)> {
    let cases = stream::iter(seeds).map(|seed| async move { Some((seed, Case::new(seed, bug).run().await.err()?)) });
    let found = cases.buffer_unordered(8).filter_map(std::future::ready);
    std::pin::pin!(found).next().await
}

#[derive(Clone, Debug)]
struct Sent {
    lane: &'static str,
    value: String,
    sent_at: u64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Acknowledged {
        at: u64,
    },
    Refused,
    /// So it was answered, or nobody was there to hear.
    Unknown,
}

/// All that happened, in the order in which it did.
#[derive(Default)]
struct History {
    clock: AtomicU64,
    sent: Mutex<Vec<Sent>>,
}

impl History {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn begin(&self, lane: &'static str, value: &str) -> usize {
        let mut sent = self.sent.lock().expect("nobody panics with it");
        sent.push(Sent { lane, value: value.to_owned(), sent_at: self.tick(), fate: Fate::Unknown });
        sent.len() - 1
    }

    fn end(&self, number: usize, fate: Fate) {
        self.sent.lock().expect("nobody panics with it")[number].fate = fate;
    }
}

/// Where the journal is.
enum Store {
    /// Dies in the middle of something, and forgets what was not synced.
    Sim(SimDisk),
    /// The process ends, and the disk has all.
    Real(TempDir),
}

impl Store {
    fn die_after(&self, changes: u64) {
        if let Self::Sim(disk) = self {
            disk.set_faults(Faults { changes_left: Some(changes), ..Faults::default() });
        }
    }

    fn come_back(&self, chance: &mut fastrand::Rng) {
        match self {
            Self::Sim(disk) if chance.bool() => disk.kill(),
            Self::Sim(disk) => disk.cut_power(chance),
            Self::Real(_) => {}
        }
    }
}

struct Case {
    chance: fastrand::Rng,
    store: Store,
    remote: Remote,
    bug: Option<Bug>,
    history: Arc<History>,
    /// Found in the spool, and in the remote log already.
    unnoted: HashSet<String>,
    lives: usize,
}

type Verdict = Result<(), String>;

impl Case {
    fn new(seed: u64, bug: Option<Bug>) -> Self {
        Self {
            chance: fastrand::Rng::with_seed(seed),
            store: if seed.is_multiple_of(8) { Store::Real(private_dir()) } else { Store::Sim(SimDisk::new()) },
            remote: Remote::new(seed),
            bug,
            history: Arc::default(),
            unnoted: HashSet::new(),
            lives: 0,
        }
    }

    async fn run(mut self) -> Verdict {
        for _ in 0..self.chance.u8(1..=4) {
            self.lives += 1;
            self.live().await?;
        }
        self.remote.set(Weather::Fair);
        let spool = self.open()?;
        until_empty(&spool).await;
        self.judge()
    }

    fn open(&mut self) -> Result<Spool, String> {
        let (disk, dir): (Arc<dyn Disk>, _) = match &self.store {
            Store::Sim(disk) => (Arc::new(disk.clone()), "/data".into()),
            Store::Real(dir) => (Arc::new(RealDisk), dir.path().to_owned()),
        };
        let journal =
            JournalConfig { allow_volatile: true, min_free_bytes: 0, max_bytes: 4 << 20, ..JournalConfig::new(dir) };
        let mode = if self.chance.u8(..4) == 0 { Mode::Always } else { Mode::WhenAway };
        let config = Config { mode, bug: self.bug, close_within: Duration::from_millis(20), ..when_away() };
        let spool = Spool::open(Arc::new(self.remote.clone()), journal, disk, config)
            .map_err(|error| format!("it does not open: {error}"))?;
        self.look(&spool)?;
        Ok(spool)
    }

    /// Of what is found in the spool, the remote log may have the head.
    fn look(&mut self, spool: &Spool) -> Verdict {
        for lane in LANES {
            let there: HashSet<String> = self.remote.values(&queue(lane)).into_iter().collect();
            let mut held = tail(spool, &queue(lane), usize::MAX, usize::MAX);
            held.retain(|entry| entry.offset >= SPOOLED_OFFSET);
            let mut is_head = true;
            for value in values(&held) {
                match (there.contains(&value), self.remote.is_unknown(&value)) {
                    (true, false) if !is_head => {
                        return Err(format!("{value} is in the middle of the spool, but forwarded"));
                    }
                    (true, false) => drop(self.unnoted.insert(value)),
                    (false, _) => is_head = false,
                    (true, true) => {}
                }
            }
        }
        Ok(())
    }

    async fn live(&mut self) -> Verdict {
        let spool = Arc::new(self.open()?);
        let mut clients: Vec<_> = (0..CLIENTS).map(|client| self.client(client, spool.clone())).collect();
        let weather = self.weather();
        let dies = self.chance.u8(..3) == 0;
        if dies {
            // In the middle of something.
            self.store.die_after(self.chance.u64(..400));
        }
        let patience = Duration::from_millis(self.chance.u64(1..30));
        if self.chance.bool() {
            let _ = tokio::time::timeout(patience, spool.failed()).await;
        } else {
            for client in &mut clients {
                client.await.expect("no client panics");
            }
            clients.clear();
        }
        weather.abort();
        if !dies && self.chance.u8(..3) == 0 {
            spool.close().await;
            for client in clients {
                client.abort();
                let _ = client.await;
            }
            return Ok(());
        }
        self.store.die_after(0);
        for client in clients {
            client.abort();
            let _ = client.await;
        }
        let _ = weather.await;
        let spool = Arc::into_inner(spool).expect("nobody else has it any more");
        spool.crash().await;
        self.store.come_back(&mut self.chance);
        Ok(())
    }

    /// Appends one record after the other.
    fn client(&mut self, client: usize, spool: Arc<Spool>) -> tokio::task::JoinHandle<()> {
        let mut chance = self.chance.fork();
        let (history, life) = (self.history.clone(), self.lives);
        tokio::spawn(async move {
            for n in 0..chance.u64(..60) {
                let lane = LANES[chance.usize(..LANES.len())];
                let value = format!("{life}.{client}.{n}");
                let number = history.begin(lane, &value);
                let answer = spool.append(&queue(lane), record(&value)).await;
                let fate = match answer {
                    Ok(_) => Fate::Acknowledged { at: history.tick() },
                    Err(AppendError::FateUnknown) => Fate::Unknown,
                    Err(_) => Fate::Refused,
                };
                history.end(number, fate);
                if chance.u8(..4) == 0 {
                    tokio::time::sleep(Duration::from_micros(chance.u64(..2_000))).await;
                }
            }
        })
    }

    fn weather(&mut self) -> tokio::task::JoinHandle<()> {
        let mut chance = self.chance.fork();
        let remote = self.remote.clone();
        tokio::spawn(async move {
            loop {
                let weather = match chance.u8(..6) {
                    0..2 => Weather::Fair,
                    2 => Weather::Away,
                    3 => Weather::Stormy,
                    4 => Weather::Forgetful,
                    _ => Weather::Silent,
                };
                remote.set_for(LANES[chance.usize(..LANES.len())], weather);
                tokio::time::sleep(Duration::from_micros(chance.u64(..5_000))).await;
            }
        })
    }

    fn judge(&self) -> Verdict {
        let sent = self.history.sent.lock().expect("nobody panics with it");
        for lane in LANES {
            let values = self.remote.values(&queue(lane));
            let mut places: HashMap<&str, (usize, usize, usize)> = HashMap::new();
            for (at, value) in values.iter().enumerate() {
                let place = places.entry(value).or_insert((at, at, 0));
                (place.1, place.2) = (at, place.2 + 1);
            }
            let sent: Vec<&Sent> = sent.iter().filter(|sent| sent.lane == lane).collect();
            for one in &sent {
                let value = &one.value;
                match (one.fate, places.get(&**value)) {
                    (Fate::Acknowledged { .. }, None) => return Err(format!("{value} is lost")),
                    (Fate::Refused, Some(_)) => return Err(format!("{value} was refused, and is there")),
                    (_, Some((_, _, 2..))) if !self.remote.is_unknown(value) && !self.unnoted.contains(value) => {
                        return Err(format!("{value} is there twice"));
                    }
                    _ => {}
                }
            }
            for before in &sent {
                let Fate::Acknowledged { at } = before.fate else { continue };
                let Some((first, last, _)) = places.get(&*before.value) else { continue };
                for after in sent.iter().filter(|after| after.sent_at > at) {
                    let Some((after_first, after_last, _)) = places.get(&*after.value) else { continue };
                    if first > after_first || last > after_last {
                        return Err(format!("{} is not in front of {}", before.value, after.value));
                    }
                }
            }
        }
        Ok(())
    }
}
