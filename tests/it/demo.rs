//! `redrive demo`, as a newcomer runs it.

use std::process::Command;

use crate::harness::kafka::jars;

#[test]
fn demonstration_fails_where_a_promise_is_broken() {
    let output = Command::new(env!("CARGO_BIN_EXE_redrive"))
        .args(["demo", "--tasks", "500"])
        .env("REDRIVE_FAULTS", "relative-ttl-as-is")
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let row = said.lines().find(|line| line.contains("sessions with another TTL")).unwrap_or_else(|| panic!("{said}"));
    assert!(row.ends_with("WRONG: 0 was promised"), "{row}");
}

#[test]
fn demonstration_keeps_its_promises_and_leaves_nothing_behind() {
    keeps_its_promises(3000, &[]);
}

#[test]
fn demonstration_with_kafka_keeps_its_promises_and_leaves_nothing_behind() {
    keeps_its_promises(1000, &["--kafka", jars().to_str().expect("the path is text")]);
}

fn keeps_its_promises(tasks: usize, more: &[&str]) {
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_redrive"))
        .args(["demo", "--tasks", &tasks.to_string()])
        .args(more)
        .env("TMPDIR", dir.path())
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let row = |name: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{said}"));
        let number = line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        number.map(|number| number.replace(',', "").parse::<usize>().expect("it is a number"))
    };
    assert_eq!(row("accepted"), Some(tasks + 1004));
    assert_eq!(row("applied"), Some(tasks + 1000));
    for outcome in ["dead", "stale", "invalidated", "expired"] {
        assert_eq!(row(outcome), Some(1), "{said}");
    }
    for wrong in ["lost", "made twice", "out of order", "counters that are not exact", "sessions with another TTL"] {
        assert_eq!(row(wrong), Some(0), "{said}");
    }
    assert!(!said.contains("WRONG"), "{said}");
    if more.is_empty() {
        let released =
            said.lines().find(|line| line.contains("What is sent to it")).unwrap_or_else(|| panic!("{said}"));
        assert!(released.contains(": probes only, then "), "{released}");
        let pages = said.lines().find_map(|line| line.trim_start().strip_prefix("Of the 1,000 writes of the pages "));
        let sent = pages.and_then(|line| line.split(' ').next()?.parse::<usize>().ok());
        assert!(sent.is_some_and(|sent| sent < 100), "{said}");
    }
    assert!(said.contains("demo-poison: "), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory is there").count(), 0);
}
