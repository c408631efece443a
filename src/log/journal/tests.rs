//! What a journal must withstand.

use std::sync::Arc;

use tempfile::TempDir;

use super::{JournalConfig, JournalLog, disk::RealDisk};
use crate::log::QueueName;

mod damage;
mod faults;
pub mod model;
mod opening;
pub mod sim;
mod tables;
mod unreadable;

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
