//! What lies in the data directory is its owner's alone, and is never found by way of somebody else's link.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use crate::harness::{Redis, Sidecar, rpush, set};

/// Everything in a directory, and itself.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if fs::symlink_metadata(path).expect("it is there").is_dir() {
        let inside = fs::read_dir(path).expect("it can be listed");
        found.extend(inside.flat_map(|entry| tree(&entry.expect("it can be listed").path())));
    }
    found
}

/// A sidecar that has written everything that it writes: two lanes, checkpoints, a dead letter. It has ended.
fn written(redis: &Redis) -> Sidecar {
    redis.cli(&["SET", "text", "1"]);
    let mut sidecar = Sidecar::start(&redis.url(), &[]);
    sidecar.post(&rpush("poison", "text"));
    let mut low = set("low", "low", "1");
    low["priority"] = "low".into();
    sidecar.post(&low);
    sidecar.wait_until_done();
    assert_eq!(sidecar.term().code(), Some(0));
    sidecar
}

#[test]
fn files_are_their_owners_alone_whatever_the_umask() {
    let redis = Redis::start(&[]);
    let sidecar = written(&redis);
    let found = tree(&sidecar.data_dir());
    for path in &found {
        let metadata = fs::symlink_metadata(path).expect("it is there");
        let wanted = if metadata.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(metadata.permissions().mode() & 0o7777, wanted, "{}", path.display());
    }
    let ends_with = |end: &str| found.iter().any(|path| path.ends_with(end));
    assert!(["LOCK", "queues/default/normal", "queues/default/low", "tables/dead-letters"].into_iter().all(ends_with));
    assert!(found.iter().filter(|path| path.extension().is_some_and(|end| end == "seg")).count() >= 3, "{found:?}");
}

#[test]
fn links_are_refused_and_not_followed() {
    let redis = Redis::start(&[]);
    let mut sidecar = written(&redis);
    let data_dir = sidecar.data_dir();
    let elsewhere = tempfile::tempdir().expect("a temporary directory can be made");
    for (number, path) in tree(&data_dir).into_iter().enumerate() {
        // The thing itself, behind a link: all would be well for one who follows it.
        let moved = elsewhere.path().join(number.to_string());
        fs::rename(&path, &moved).expect("both are on one disk");
        symlink(&moved, &path).expect("the directory is ours");
        let before: Vec<_> = tree(&moved).iter().map(|path| fs::read(path).ok()).collect();
        let (status, said) = sidecar.fail_to_restart();
        assert_eq!(status, Some(1), "{}: {said}", path.display());
        assert!(said.contains(&path.display().to_string()), "{}: {said}", path.display());
        let after: Vec<_> = tree(&moved).iter().map(|path| fs::read(path).ok()).collect();
        assert!(before == after, "{} was written to through a link", path.display());
        fs::remove_file(&path).expect("the link is ours");
        fs::rename(&moved, &path).expect("both are on one disk");
    }
    sidecar.restart();
    assert!(sidecar.dead_letter("poison").is_some(), "nothing is the worse for it");
}

#[test]
fn directory_that_others_may_write_to_is_refused() {
    let redis = Redis::start(&[]);
    let mut sidecar = written(&redis);
    let data_dir = sidecar.data_dir();
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(&data_dir, Permissions::from_mode(mode)).expect("the directory is ours");
        let (status, said) = sidecar.fail_to_restart();
        assert_eq!(status, Some(1), "{mode:o}: {said}");
        assert!(said.contains(&data_dir.display().to_string()), "{mode:o}: {said}");
    }
    fs::set_permissions(&data_dir, Permissions::from_mode(0o700)).expect("the directory is ours");
    sidecar.restart();
}
