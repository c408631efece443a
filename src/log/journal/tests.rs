//! What a journal must withstand.

use std::sync::Arc;

use tempfile::TempDir;

use super::{JournalConfig, JournalLog, disk::RealDisk};

pub mod model;

mod conformance {
    use super::*;

    async fn open() -> (JournalLog, TempDir) {
        let dir = private_dir();
        (JournalLog::open(config(&dir), Arc::new(RealDisk)).expect("it opens"), dir)
    }

    crate::log::conformance::suite!(open);
}

fn private_dir() -> TempDir {
    tempfile::tempdir().expect("a directory can be made")
}

fn config(dir: &TempDir) -> JournalConfig {
    JournalConfig { allow_volatile: true, min_free_bytes: 0, ..JournalConfig::new(dir.path()) }
}
