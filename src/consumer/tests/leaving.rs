//! Partitions that are taken away, and what must not stay behind.

use super::{
    world::{OFTEN, ON_DEMAND, World, count, given_up, partition, set, until, until_async},
    *,
};

/// A partition goes to another process in the middle of everything: each task runs once.
#[tokio::test]
async fn revoked_partition_is_released_with_all_it_has_done() {
    const TASKS: u64 = 20_000;
    let world = World::new(OFTEN);
    let partition = partition(3);
    for n in 0..TASKS {
        world.submit(&partition, &count(&format!("n:{n}")));
    }
    let first = world.start(|_| {});
    world.log.assign(&partition);
    until("it has begun", || world.get("n:0") == "1").await;
    given_up(world.log.revoke(&partition)).await;
    let (watermark, state) = world.state(&partition).expect("it was written down");
    assert!(state.released && watermark < TASKS, "it was in the middle");
    let keys = || (0..TASKS).map(|n| format!("n:{n}"));
    for (n, value) in (0..).zip(world.get_all(keys())) {
        assert_eq!(state.finished.contains(n), value == "1", "task {n} with the value {value:?}");
    }
    assert_eq!(first.partitions().await, [0; 0], "nothing of it is shown");

    let _second = world.start(|_| {});
    world.log.assign(&partition);
    until("the rest is done", || world.watermark(&partition) == TASKS).await;
    assert!(world.get_all(keys()).iter().all(|value| value == "1"));
}

/// The server holds writes back: what was sent is neither done nor refused. When the bound has passed it is cut off, and
/// the next owner, who knows of it, does it.
#[tokio::test]
async fn what_is_in_flight_at_the_bound_is_cut_off_and_not_called_released() {
    let world = World::new(OFTEN);
    let _first = world.start(|config| config.revoke_bound = Duration::from_millis(300));
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    world.submit(&partition(0), &count("late"));
    until("it is on its way", || world.clients("incr") == 1).await;
    given_up(world.log.revoke(&partition(0))).await;
    let (watermark, state) = world.state(&partition(0)).expect("it was written down");
    assert!(!state.released && watermark == 1, "something may still arrive");
    until("its connection is cut", || world.clients("incr") == 0).await;
    world.redis.cli(&["CLIENT", "UNPAUSE"]);

    let _second = world.start(|_| {});
    world.log.assign(&partition(0));
    until("it is done", || world.watermark(&partition(0)) == 2).await;
    assert_eq!(world.get("late"), "1");
}

/// The batch of a partition that was given up ends when another one has come in its place.
#[tokio::test]
async fn late_result_does_not_touch_the_window_that_took_the_place() {
    let world = World::new(OFTEN);
    let owner = world.start(|config| config.revoke_bound = Duration::from_millis(50));
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    world.submit(&partition(0), &count("k"));
    until("it is on its way", || world.clients("incr") == 1).await;
    // Now it cannot even be cut off.
    world.redis.stop();
    given_up(world.log.revoke(&partition(0))).await;
    let given_up_at = world.log.checkpoint(&partition(0));
    for n in 0..3 {
        world.submit(&partition(1), &count(&format!("new:{n}")));
    }
    world.log.assign(&partition(1));
    until_async("the new one is there", async || owner.partitions().await == [1]).await;
    assert!(owner.overview().await.in_flight > 0, "the batch has not ended");
    world.redis.cont();
    world.redis.cli(&["CLIENT", "UNPAUSE"]);
    until("the new one is done", || world.watermark(&partition(1)) == 3).await;
    until_async("the batch has ended", async || owner.overview().await.in_flight == 0).await;
    assert_eq!(world.get_all((0..3).map(|n| format!("new:{n}"))), ["1", "1", "1"]);
    assert_eq!(world.log.checkpoint(&partition(0)), given_up_at);
}

/// At once: what waits behind what was sent is not sent, what was sent is cut off, and nothing is written down.
#[tokio::test]
async fn nothing_is_sent_or_written_down_after_a_partition_was_lost() {
    let world = World::new(OFTEN);
    let owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    world.submit(&partition(0), &count("k"));
    world.submit(&partition(0), &count("k"));
    until("the first is on its way", || world.clients("incr") == 1).await;
    world.log.lose(&partition(0));
    until("its connection is cut", || world.clients("incr") == 0).await;
    let (commits, checkpoint) = (world.log.commits(&partition(0)), world.log.checkpoint(&partition(0)));
    world.redis.cli(&["CLIENT", "UNPAUSE"]);

    world.assign_and_warm_up(&partition(1)).await;
    assert_eq!(world.get("k"), "", "neither was done");
    assert_eq!(world.log.commits(&partition(0)), commits);
    assert_eq!(world.log.checkpoint(&partition(0)), checkpoint);
    assert_eq!(owner.partitions().await, [1]);

    // It comes back to the same process, which is not cut off from itself.
    world.log.assign(&partition(0));
    until("both are done", || world.watermark(&partition(0)) == 3).await;
    assert_eq!(world.get("k"), "2");
    world.submit(&partition(1), &set("other", "1"));
    until("the other partition goes on", || world.get("other") == "1").await;
}

/// What was settled and never written down runs again, by whoever has the partition next: also here.
#[tokio::test]
async fn what_was_not_written_down_is_not_taken_for_a_repetition() {
    let world = World::new(ON_DEMAND);
    let owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    for n in 0..3 {
        world.submit(&partition(0), &set(&format!("k:{n}"), "1"));
    }
    let keys = || (0..3).map(|n| format!("k:{n}"));
    until("they are applied", || world.get_all(keys()) == ["1", "1", "1"]).await;
    until_async("they are settled", async || owner.overview().await.partitions[0].unfinished == 0).await;
    assert_eq!(world.log.commits(&partition(0)), 1, "only who the owner is was written down");
    world.log.lose(&partition(0));
    // Another owner has done this much of them.
    world.redis.cli(&["MSET", "k:0", "0", "k:1", "0", "k:2", "0"]);
    world.log.assign(&partition(0));
    until("they are applied again", || world.get_all(keys()) == ["1", "1", "1"]).await;
}

/// A checkpoint that is not answered may not keep a partition: there is no other, and it is given up in time.
#[tokio::test]
async fn unanswered_checkpoint_holds_nothing_up() {
    let world = World::new(OFTEN);
    let owner = world.start(|config| config.revoke_bound = Duration::from_millis(200));
    world.assign_and_warm_up(&partition(0)).await;
    world.log.hold_commits(true);
    let before = world.log.checkpoint(&partition(0));
    world.submit(&partition(0), &set("k", "1"));
    until("it is applied", || world.get("k") == "1").await;
    given_up(world.log.revoke(&partition(0))).await;
    assert_eq!(owner.partitions().await, [0; 0]);
    assert_eq!(world.log.checkpoint(&partition(0)), before);

    // Nor one that was all there is to do.
    world.log.hold_commits(false);
    world.assign_and_warm_up(&partition(1)).await;
    world.log.hold_commits(true);
    given_up(world.log.revoke(&partition(1))).await;
}

#[tokio::test]
async fn checkpoint_that_is_refused_means_that_the_partition_is_lost() {
    let world = World::new(OFTEN);
    let owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    world.log.depose(&partition(0));
    world.submit(&partition(0), &set("k", "1"));
    until_async("it notices", async || owner.partitions().await.is_empty()).await;
}

#[tokio::test]
async fn nothing_is_sent_once_the_lease_has_ended() {
    let world = World::new(OFTEN);
    let _owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    world.log.end_lease(&partition(0));
    world.submit(&partition(0), &set("k", "1"));
    world.assign_and_warm_up(&partition(1)).await;
    assert_eq!(world.get("k"), "");
}

/// Units of a lost partition that wait because their command is refused are not found by the next one.
#[tokio::test]
async fn parked_units_go_with_their_partition() {
    let world = World::new(OFTEN);
    let owner = world.start(|_| {});
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["ACL", "SETUSER", "default", "-incr"]);
    let submit = |index, name: &str| {
        (0..5).for_each(|n| {
            world.submit(&partition(index), &count(&format!("{name}:{n}")));
        });
    };
    let parked = async |index| {
        let overview = owner.overview().await;
        overview.backoff == 5 && overview.partitions.iter().any(|partition| partition.index == index)
    };
    submit(0, "old");
    until_async("they are parked", async || parked(0).await).await;
    world.log.lose(&partition(0));
    submit(1, "new");
    world.log.assign(&partition(1));
    until_async("the new ones are parked", async || parked(1).await).await;
    world.redis.cli(&["ACL", "SETUSER", "default", "+incr"]);
    world.submit(&partition(1), &count("one more"));
    until("the command is known to be allowed", || world.get("one more") == "1").await;
    until("the new ones came to their end", || world.watermark(&partition(1)) == 6).await;
    assert!(world.get_all((0..5).map(|n| format!("old:{n}"))).iter().all(String::is_empty));
}

/// A process that stops while a partition is being revoked writes its last checkpoint and then gives it up.
#[tokio::test]
async fn stopping_gives_up_what_is_being_revoked() {
    let world = World::new(OFTEN);
    let owner = world.start(|config| config.revoke_bound = Duration::from_secs(3600));
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["CLIENT", "PAUSE", "60000", "WRITE"]);
    world.submit(&partition(0), &count("late"));
    until("it is on its way", || world.clients("incr") == 1).await;
    let done = world.log.revoke(&partition(0));
    until_async("it waits", async || owner.overview().await.in_flight == 1).await;
    owner.stop();
    world.redis.cli(&["CLIENT", "UNPAUSE"]);
    given_up(done).await;
    let (watermark, state) = world.state(&partition(0)).expect("it was written down");
    assert!(state.released && watermark == 2);
    owner.stopped().await;
}

/// Neither a server that holds a write back nor a log that does not answer keeps a process from stopping; and it does not
/// say then that all has ended.
#[tokio::test]
async fn stopping_has_an_end() {
    let world = World::new(OFTEN);
    let stopping = |config: &mut Config| config.revoke_bound = Duration::from_millis(200);
    let first = world.start(stopping);
    world.assign_and_warm_up(&partition(0)).await;
    world.redis.cli(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    world.submit(&partition(0), &count("late"));
    until("it is on its way", || world.clients("incr") == 1).await;
    first.stop();
    first.stopped().await;
    let (watermark, state) = world.state(&partition(0)).expect("it was written down");
    assert!(!state.released && watermark == 1);
    world.redis.cli(&["CLIENT", "UNPAUSE"]);

    let second = world.start(stopping);
    world.log.assign(&partition(0));
    until("it is done", || world.watermark(&partition(0)) == 2).await;
    assert_eq!(world.get("late"), "1");
    world.log.hold_commits(true);
    world.submit(&partition(0), &count("more"));
    until("it is applied", || world.get("more") == "1").await;
    second.stop();
    second.stopped().await;
}
