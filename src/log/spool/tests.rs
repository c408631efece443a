//! What the spool must withstand.

use std::{sync::Arc, time::Duration};

use tempfile::TempDir;

use self::remote::Remote;
use super::{Config, Mode, Spool};
use crate::log::{
    Appended, Durability, Log, QueueName,
    conformance::{queue, record},
    journal::{Disk, JournalConfig, RealDisk},
    memory::MemoryLog,
};

mod closing;
mod full;
mod model;
mod remote;
mod ways;

/// What a spool must not do; planted to see that the tests would find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// New records go to the remote log before it is durable that those before them were forwarded.
    DirectBeforeCheckpoint,
    /// New records go to the remote log while the spool holds some.
    DirectPastSpool,
    /// A record is sent without room for it in the spool.
    NoReservation,
}

mod conformance {
    use super::*;

    async fn open() -> (Spool, TempDir) {
        let dir = private_dir();
        let spool = Spool::open(Arc::new(MemoryLog::default()), journal(&dir), Arc::new(RealDisk), when_away());
        (spool.expect("it opens"), dir)
    }

    crate::log::conformance::suite!(open);
}

fn private_dir() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn journal(dir: &TempDir) -> JournalConfig {
    JournalConfig { allow_volatile: true, min_free_bytes: 0, ..JournalConfig::new(dir.path()) }
}

fn when_away() -> Config {
    Config {
        min_pause: Duration::from_millis(1),
        max_pause: Duration::from_millis(5),
        ..Config::new(Mode::WhenAway, Duration::from_secs(3))
    }
}

fn always() -> Config {
    Config { mode: Mode::Always, ..when_away() }
}

fn open(remote: &Remote, dir: &TempDir, config: Config) -> Spool {
    open_on(remote, journal(dir), Arc::new(RealDisk), config)
}

fn open_on(remote: &Remote, journal: JournalConfig, disk: Arc<dyn Disk>, config: Config) -> Spool {
    Spool::open(Arc::new(remote.clone()), journal, disk, config).expect("it opens")
}

async fn append(spool: &Spool, queue: &QueueName, value: &str) -> Durability {
    let appended: Appended = spool.append(queue, record(value)).await.expect("there is room");
    appended.durability
}

/// Waits until it is so.
async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "it never came to be: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn until_empty(spool: &Spool) {
    until("the spool is empty", || spool.spooled().is_empty()).await;
}

impl Spool {
    /// Ends it as a crash would, but for the locks and threads, which the next one must not meet.
    async fn crash(self) {
        self.inner.closing.cancel();
        self.inner.stop.cancel();
        self.inner.requests.close();
        self.inner.forwarders.close();
        let gone = async {
            self.inner.forwarders.wait().await;
            self.inner.requests.wait().await;
        };
        tokio::time::timeout(Duration::from_secs(30), gone).await.expect("it ends");
    }
}
