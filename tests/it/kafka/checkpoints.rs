//! What is committed beside an offset, where there is as much to say as there can be.

use serde_json::Value;

use super::{flags, reaches_kafka};
use crate::harness::{
    Proxy, Redis, Sidecar,
    kafka::{Kafka, unique},
    set, simple, wait_until,
};

/// So many positions are read above one that is not finished, whatever they are.
const SPAN: usize = 8192;

/// What a broker keeps beside an offset, where nobody has set `offset.metadata.max.bytes`.
const MOST_CHARS: usize = 4096;

/// Of the tasks that fail again under the next owner, at either end.
const WATCHED: usize = 10;

/// What each that fails may have: more than one, as some are tried again before their owner is killed.
const ATTEMPTS: usize = 5;

/// What PFADD takes for its own and finds broken: it may pass, so it is tried again.
const BROKEN_SKETCH: &str = "HYLL\u{1}\0\0\0\0\0\0\0\0\0\0\0";

fn sketch(number: usize) -> String {
    format!("sketch:{number}")
}

/// Every other task of a span is finished, and all between have spent an attempt, when their owner is killed. The next
/// one sends nothing again that was finished, makes all that was not, and remembers the attempts of those for which
/// there was room: the first.
#[test]
fn fullest_checkpoint_is_kept_by_kafka_and_says_nothing_but_the_truth() {
    let (redis, topic) = (Redis::start(&[]), unique("fullest"));
    let proxy = Proxy::start(redis.port());
    let flags = flags(Kafka::shared(), &topic);
    let start = |base: &str| {
        let more = ["--kafka-partitions=1", "--retry-base", base, "--retry-cap", base];
        Sidecar::start(&proxy.url(), &flags.iter().map(String::as_str).chain(more).collect::<Vec<_>>())
    };
    let mut first = start("1h");
    wait_until("Kafka takes tasks", || reaches_kafka(&first));
    let sketches = |number: std::ops::Range<usize>| number.step_by(2);
    let mut words = vec!["MSET".to_owned()];
    words.extend(sketches(0..SPAN).flat_map(|number| [sketch(number), BROKEN_SKETCH.to_owned()]));
    redis.cli(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let task = |number: usize| match number % 2 {
        0 => {
            let mut task = simple(&format!("failing-{number}"), "PFADD", &[&sketch(number), "x"]);
            task["max_retries"] = (ATTEMPTS - 1).into();
            task
        }
        _ => set(&format!("mark-{number}"), &format!("mark:{number}"), "1"),
    };
    for numbers in (0..SPAN).collect::<Vec<_>>().chunks(500) {
        first.batch(&numbers.iter().map(|number| task(*number)).collect::<Vec<Value>>());
    }
    let marks_sent = || proxy.count_with("mark:");
    wait_until("every other one to be made", || first.settled("applied") as usize > SPAN / 2);
    wait_until("all others to have failed", || first.attempts("backoff") as usize >= SPAN / 2);
    assert_eq!((marks_sent(), first.settled("dead")), (SPAN / 2, 0));
    // The second checkpoint from now on began after what has been seen.
    let committed = || Kafka::shared().committed(&format!("{topic}-group"), &topic);
    for tick in ["tick-1", "tick-2"] {
        let before = committed();
        first.post(&set(tick, tick, "1"));
        wait_until("a checkpoint to be committed", || committed() != before);
    }
    let (_, words) = committed();
    assert!((MOST_CHARS - 8..=MOST_CHARS).contains(&words.len()), "{} characters: {words}", words.len());
    assert!(first.logged("was not stored").is_empty(), "{:?}", first.logged("was not stored"));
    first.kill9();

    let heads: Vec<usize> = sketches(0..2 * WATCHED).collect();
    let tails: Vec<usize> = sketches(SPAN - 2 * WATCHED..SPAN).collect();
    let mended: Vec<String> = sketches(2 * WATCHED..SPAN - 2 * WATCHED).map(sketch).collect();
    redis.cli(&["DEL"].into_iter().chain(mended.iter().map(String::as_str)).collect::<Vec<_>>());
    let sent = |numbers: &[usize]| -> Vec<usize> {
        numbers.iter().map(|number| proxy.count("PFADD", &sketch(*number))).collect()
    };
    let tails_by_first = sent(&tails);
    let second = start("1ms");
    wait_until("the watched ones to be given up", || second.settled("dead") as usize == 2 * WATCHED);
    second.wait_until_done();
    assert_eq!(sent(&heads), [ATTEMPTS; WATCHED], "those of the first owner count");
    let tails_by_second: Vec<usize> = sent(&tails).iter().zip(tails_by_first).map(|(all, first)| all - first).collect();
    assert_eq!(tails_by_second, [ATTEMPTS; WATCHED], "there was no room for their attempts");
    assert_eq!(marks_sent(), SPAN / 2, "what is finished is not sent again");
    let made = |number: &String| redis.cli(&["PFCOUNT", number]).text() == "1";
    assert!(mended.iter().all(made), "what is not finished is made");
}
