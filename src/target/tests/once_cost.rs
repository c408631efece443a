//! What running once costs: memory of the server, and time. Run with `--nocapture` the numbers are shown.

#![expect(clippy::print_stderr, reason = "numbers that are measured are there to be read")]

use std::time::Instant;

use jiff::Timestamp;

use super::*;

/// Writes that many markers of the present hour, as the script does, and returns what each of them takes in bytes.
fn bytes_a_marker(server: &RedisServer, markers: u64) -> f64 {
    let used = || {
        let info = server.cli(&["INFO", "memory"]).text();
        let line = info.lines().find_map(|line| line.strip_prefix("used_memory:")).map(str::to_owned);
        line.and_then(|bytes| bytes.trim().parse::<f64>().ok()).expect("the server tells")
    };
    // By a script of its own, as a million units would take a minute. A field is as long as `Marker::field` makes it.
    let fill = "for number = ARGV[2], ARGV[3] do
            local bucket, words = ARGV[1] .. number, {}
            for marker = 1, ARGV[4] do
                words[2 * marker - 1], words[2 * marker] = struct.pack('<I4I4', marker, number), '1'
            end
            redis.call('HSET', bucket, unpack(words))
            redis.call('PEXPIRE', bucket, 86400000)
        end";
    let marker = Marker { id_hash: 0, unit: 0, accepted_at: Timestamp::now() };
    let own = OwnKeys::new("redrive:", Duration::from_secs(86_400), Duration::ZERO);
    let [bucket, _] = own.buckets(&marker, "").map(|bucket| bucket.to_string());
    let of_hour = bucket.strip_suffix('0').expect("it is the first bucket");
    let each = (markers / marker::BUCKETS).to_string();
    server.cli(&["FLUSHALL", "SYNC"]);
    let before = used();
    for first in (0..marker::BUCKETS).step_by(1024) {
        let last = first + 1023;
        let reply = server.cli(&["EVAL", fill, "0", of_hour, &first.to_string(), &last.to_string(), &each]);
        assert_eq!(reply, Reply::Bulk(None));
    }
    let markers = marker::BUCKETS * (markers / marker::BUCKETS);
    (used() - before) / markers as f64
}

#[test]
fn marker_takes_a_few_bytes_where_it_matters() {
    let server = RedisServer::start(&[]);
    let few = bytes_a_marker(&server, 100_000);
    let many = bytes_a_marker(&server, 1_000_000);
    eprintln!("bytes a marker: {few:.1} of 100,000, {many:.1} of 1,000,000");
    assert!(few < 40.0 && many < 20.0, "{few:.1}, {many:.1}");
}

#[tokio::test]
async fn units_that_run_once_share_calls() {
    const BATCHES: u64 = 60;
    const UNITS: u64 = 128;
    let server = RedisServer::start(&[]);
    let target = target(&server);
    let mut connection = target.connect().await.expect("the server is up");
    let accepted_at = Timestamp::now();
    let value = "x".repeat(64);
    let mut rates = [Vec::new(), Vec::new(), Vec::new()];
    for round in 0..3 {
        let started = Instant::now();
        for batch in 0..BATCHES {
            let mut plain = target.batch();
            for unit in 0..UNITS {
                push(&mut plain, &["SET", &format!("key:{}", batch * UNITS + unit), &value]);
            }
            assert!(connection.execute(plain).await.results.iter().all(|result| *result == DONE));
        }
        rates[0].push((BATCHES * UNITS) as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for batch in 0..BATCHES {
            let mut once = target.batch();
            for unit in 0..UNITS {
                let number = (round * BATCHES + batch) * UNITS + unit;
                // As hashes are: evenly over all buckets.
                let id_hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 3;
                let key = format!("counter:{}", number % 100_000);
                push_once(&mut once, &Marker { id_hash, unit: 0, accepted_at }, &[&["INCR", &key]]);
            }
            assert!(connection.execute(once).await.results.iter().all(|result| *result == DONE));
        }
        rates[1].push((BATCHES * UNITS) as f64 / started.elapsed().as_secs_f64());
        let started = Instant::now();
        for unit in 0..UNITS {
            let marker = Marker { id_hash: u64::MAX - round * UNITS - unit, unit: 0, accepted_at };
            let mut alone = target.batch();
            push_once(&mut alone, &marker, &[&["INCR", "counter"]]);
            assert_eq!(only(connection.execute(alone).await), DONE);
        }
        rates[2].push(UNITS as f64 / started.elapsed().as_secs_f64());
    }
    let [plain, once, alone] = rates.map(|rates| rates.into_iter().fold(0.0, f64::max));
    eprintln!("a second: {plain:.0} plain SETs, {once:.0} once-INCRs ({:.2}x), {alone:.0} one by one", once / plain);
    assert!(once > 2.0 * alone, "{once:.0} in batches, {alone:.0} one by one");
}
