use super::*;

mod foreign;
mod leaving;
mod saved;
mod superseding;
mod world;

#[test]
fn end_does_not_wait_for_a_name_that_is_being_looked_up() {
    let (answer, answered) = std::sync::mpsc::channel();
    let (begin, begun) = oneshot::channel();
    let lookup = move || {
        begin.send(()).expect("the work waits for it");
        answered.recv_timeout(Duration::from_secs(10))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let work = async {
        drop(tokio::task::spawn_blocking(lookup));
        begun.await
    };
    drive(runtime, work).expect("the lookup has begun");
    answer.send(()).expect("the lookup still goes on");
}
