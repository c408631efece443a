//! Faults of the machine under a sidecar: a full disk, a failed sync, no more threads.
//!
//! They come and go while it runs. The product knows nothing of them: a small library, compiled here and loaded before
//! the C library, has the calls fail that fail on such a machine.

use std::{fs, path::PathBuf, process::Command, sync::OnceLock};

use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// No file grows.
    FullDisk,
    /// No sync ends.
    HungSync,
    /// No sync succeeds.
    FailedSync,
    /// No thread starts.
    NoThreads,
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::FullDisk => "full-disk",
            Self::HungSync => "hung-sync",
            Self::FailedSync => "failed-sync",
            Self::NoThreads => "no-threads",
        }
    }
}

/// What goes wrong under one sidecar; at first nothing.
pub struct Faults(TempDir);

impl Faults {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory can be made"))
    }

    pub fn begin(&self, fault: Fault) {
        fs::write(self.0.path().join(fault.name()), "").expect("the directory is ours");
    }

    pub fn end(&self, fault: Fault) {
        fs::remove_file(self.0.path().join(fault.name())).expect("the fault had begun");
    }

    /// What a process needs in its environment to have them.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = [("LD_PRELOAD", library().display()), ("FAULTS", self.0.path().display())];
        variables.map(|(name, value)| (name.to_owned(), value.to_string())).into()
    }
}

/// Compiled once for all tests of a process.
fn library() -> &'static PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/harness/faults.c");
        let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
        let unfinished = library.with_extension(std::process::id().to_string());
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", source, "-o"])
            .args([unfinished.as_os_str(), "-ldl".as_ref()])
            .output()
            .expect("cc is installed");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        // Moved when it is whole: another run of the tests may have its sidecars load it at this moment.
        fs::rename(unfinished, &library).expect("both lie in one directory");
        library
    })
}
