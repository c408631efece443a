use super::*;

fn judge(origin: Origin, text: &str) -> Failure {
    let (code, message) = text.split_once(' ').unwrap_or((text, ""));
    classify(code, message, Context { origin, arguments: &[] })
}

#[test]
fn placeholder() {
    assert_eq!(judge(Origin::Command, "OOM x").class, FailureClass::Hold);
}
