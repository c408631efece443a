use jiff::Timestamp;

use super::*;

fn rules() -> Rules {
    Rules::new(Config::default(), [Task::DEFAULT_TARGET.to_owned()])
}

fn now() -> Timestamp {
    "2026-11-25T12:00:00Z".parse().expect("a time")
}

fn parse(body: &str) -> Result<Task<'_>, Refusal> {
    Task::parse(body.as_bytes(), &rules(), now())
}

#[test]
fn simple_task_has_what_the_body_says() {
    let task = parse(r#"{"type":"simple","command":"set","args":["user:{42}:x","v","EX",3600],"id":"a-1"}"#)
        .expect("accepted");
    let Operation::Simple(command) = &task.operation else { panic!("not simple") };
    assert_eq!(command.spec.name, "SET");
    assert_eq!(command.args, [&b"user:{42}:x"[..], b"v", b"EX", b"3600"]);
    assert!(command.args.iter().all(|arg| matches!(arg, Cow::Borrowed(_))));
    let id = task.id.clone().expect("an id");
    assert_eq!(task.default_ordering_key(&id), b"42");
    let units: Vec<_> = task.operation.units().collect();
    assert_eq!(units.len(), 1);
    assert_eq!(*units[0].keys, [UnitKey { bytes: b"user:{42}:x", written: true }]);
}
