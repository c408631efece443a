//! What a journal must withstand.

use std::sync::Arc;

use tempfile::TempDir;

use super::{
    JournalConfig, JournalLog,
    audit::DamageReport,
    budget::Budget,
    disk::RealDisk,
    segment::{Aside, Home, Shape},
    stats::JournalStats,
};
use crate::log::QueueName;

mod damage;
mod faults;
pub mod model;
mod opening;
pub mod sim;
mod tables;
mod unreadable;

const DIR: &str = "/journal";

mod conformance {
    use super::*;

    async fn open() -> (JournalLog, TempDir) {
        let dir = private_dir();
        (JournalLog::open(config(&dir), Arc::new(RealDisk)).expect("it opens"), dir)
    }

    crate::log::conformance::suite!(open);
}

fn lane(lane: &'static str) -> QueueName {
    crate::log::conformance::queue(lane)
}

/// A place for a chain of segments, on a disk in memory.
fn home(disk: &sim::SimDisk, shape: Shape, stats: &Arc<JournalStats>) -> Arc<Home> {
    Arc::new(Home {
        root: DIR.into(),
        dir: DIR.into(),
        disk: Arc::new(disk.clone()),
        shape,
        account: Budget::new(1 << 30, &[], stats.clone()).account(None),
        report: DamageReport::new("test".to_owned(), stats.clone()),
        aside: Aside::default(),
        bug: None,
    })
}

fn private_dir() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn config(dir: &TempDir) -> JournalConfig {
    JournalConfig { allow_volatile: true, min_free_bytes: 0, ..JournalConfig::new(dir.path()) }
}

/// What is logged on this thread meanwhile.
fn log_lines(during: impl FnOnce()) -> Vec<String> {
    #[derive(Clone, Default)]
    struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, during);
    let bytes = lines.0.lock().expect("nobody panics with it");
    String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect()
}
