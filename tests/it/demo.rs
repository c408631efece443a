//! `redrive demo`, as a newcomer runs it.

use std::process::Command;

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
    let dir = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_redrive"))
        .args(["demo", "--tasks", "3000"])
        .env("TMPDIR", dir.path())
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let row = |name: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{said}"));
        line.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).map(str::to_owned)
    };
    assert_eq!(row("accepted").as_deref(), Some("4,004"));
    assert_eq!(row("applied").as_deref(), Some("4,000"));
    for outcome in ["dead", "stale", "invalidated", "expired"] {
        assert_eq!(row(outcome).as_deref(), Some("1"), "{said}");
    }
    for wrong in ["lost", "made twice", "out of order", "counters that are not exact", "sessions with another TTL"] {
        assert_eq!(row(wrong).as_deref(), Some("0"), "{said}");
    }
    assert!(!said.contains("WRONG"), "{said}");
    let released = said.lines().find(|line| line.contains("What is sent to it")).unwrap_or_else(|| panic!("{said}"));
    assert!(released.contains(": probes only, then "), "{released}");
    assert!(said.contains("demo-poison: "), "{said}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("the directory is there").count(), 0);
}
