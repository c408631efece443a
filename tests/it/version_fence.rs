//! What docs/version-fence.md tells services is what Redrive does.

use serde_json::json;
use sha1_smol::Sha1;

use crate::harness::{Redis, Sidecar, resp::Reply, set};

const PAGE: &str = include_str!("../../docs/version-fence.md");
const SCRIPT: &str = include_str!("../../docs/version-fence.lua");

/// What stands between the backticks of a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

#[test]
fn page_has_the_digest_of_the_script() {
    let digest = Sha1::from(SCRIPT).digest().to_string();
    assert!(PAGE.contains(&format!("`{digest}`")), "docs/version-fence.md does not name {digest}");
}

/// The call that the page shows, as it stands there, and the markers that it lists.
#[test]
fn service_that_does_what_the_page_says_meets_redrive_at_the_same_marker() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let post = |id: &str, key: &str, version: &str| {
        let mut task = set(id, key, "queued");
        task["version"] = version.into();
        sidecar.post(&task);
        sidecar.wait_until_done();
        sidecar.get(id).json()["outcome"].clone()
    };

    let call = PAGE.lines().find_map(|line| line.strip_prefix("EVALSHA <SHA-1> ")).expect("the page shows a call");
    let words: Vec<&str> = ["EVAL", SCRIPT].into_iter().chain(call.split_whitespace()).collect();
    assert_eq!(redis.cli(&words), Reply::Integer(1));
    let [key, version, id] = [words[3], words[5], words[6]];
    assert_eq!(post("older", key, "16"), json!("stale"));
    assert_eq!(post(id, key, version), json!("applied"), "it is the same write");
    assert_ne!(redis.get(key), "queued", "which was not made again");
    assert_eq!(post("newer", key, "18"), json!("applied"));
    assert_eq!(redis.cli(&words), Reply::Integer(-1));
    assert_eq!(redis.get(key), "queued");

    let rows = PAGE.lines().filter(|line| line.starts_with("| `") && line.contains("version:"));
    let markers: Vec<_> = rows.map(quoted).filter(|row| row.len() == 2).collect();
    assert!(markers.len() >= 4, "{markers:?}");
    for (number, row) in markers.iter().enumerate() {
        assert_eq!(post(&format!("marker-{number}"), row[0], "100"), json!("applied"));
        assert_eq!(redis.get(row[1]), format!("100 marker-{number}"), "{row:?}");
    }
}
