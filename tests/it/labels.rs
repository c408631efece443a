//! What clients choose freely changes neither the metrics' series nor the lines of the log.

use serde_json::{Value, json};

use crate::harness::{Redis, Sidecar, wait_until};

fn series(sidecar: &Sidecar) -> usize {
    sidecar.ops("/metrics").body.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn series_of_the_metrics_are_the_same_whatever_is_sent() {
    let redis = Redis::start(&[]);
    let sidecar = Sidecar::start(&redis.url(), &[]);
    let before = series(&sidecar);
    let tasks: Vec<Value> = (0..400)
        .map(|n| {
            json!({"id": format!("id-{n}"), "type": "simple", "command": "SET", "args": [format!("key-{n}"), "v"],
                "source": format!("source-{n}"), "trace_id": format!("trace-{n}")})
        })
        .collect();
    sidecar.batch(&tasks);
    for n in 0..200 {
        assert_eq!(sidecar.get(&format!("unknown-{n}")).status, 404);
        assert_eq!(sidecar.ops(&format!("/path-{n}")).status, 404);
    }
    wait_until("all tasks to be made", || sidecar.settled("applied") == 400);
    assert_eq!(series(&sidecar), before);
}

#[test]
fn no_field_of_a_task_forges_a_line_of_the_log() {
    let redis = Redis::start(&[]);
    let mut sidecar = Sidecar::start(&redis.url(), &["--log-level=debug"]);
    let forged = "x\n{\"level\":\"ERROR\",\"message\":\"forged\"}\u{1b}[2J\u{202e}";
    let post = |task: Value| sidecar.try_post(&task).expect("the sidecar answers");
    assert_eq!(post(json!({"id": forged, "type": "simple", "command": "SET", "args": ["k", "v"]})).status, 422);
    for command in ["SET", "LPUSH"] {
        let task =
            json!({"type": "simple", "command": command, "args": ["k", "v"], "trace_id": forged, "source": forged});
        assert_eq!(post(task).status, 202);
    }
    wait_until("one to be made and one to die", || sidecar.settled("applied") == 1 && sidecar.settled("dead") == 1);
    sidecar.term();
    let lines = sidecar.logs();
    assert!(lines.iter().any(|line| line.contains("Gave up")), "{lines:#?}");
    for line in lines {
        let parsed: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not a line of its own: {line}"));
        assert_ne!(parsed["message"], "forged");
        assert!(!line.contains('\u{1b}'), "{line}");
    }
}
