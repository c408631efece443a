use super::*;
use crate::retry::{Executed, History, Policy, ReasonClass, Verdict, decide};

const GOAL: usize = 4;

fn breaker() -> Breaker {
    Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(3), Instant::now())
}

fn refused() -> Failure {
    Failure::hold("connection-refused", "")
}

fn timeout() -> Failure {
    Failure::ambiguous(Failure::TIMEOUT, "")
}

fn out_of_memory() -> Failure {
    Failure::hold(Failure::OUT_OF_MEMORY, "")
}

fn open(breaker: &mut Breaker, now: Instant) {
    assert!(breaker.on_failure(&refused(), now));
    assert_eq!(breaker.state().as_str(), "open");
}

fn half_open(breaker: &mut Breaker, now: Instant) {
    open(breaker, now);
    breaker.on_probe(Ok(()), now);
    assert_eq!(breaker.state().as_str(), "half_open");
}

fn ramp(breaker: &mut Breaker, now: Instant) {
    half_open(breaker, now);
    assert_eq!(breaker.admit(), Admission::Trial);
    breaker.on_batch(now, GOAL, now);
    assert_eq!(breaker.admit(), Admission::Ramp(1));
}

#[test]
fn hard_signals_open_at_once() {
    let lost = Failure::ambiguous("connection-lost", "");
    for failure in [refused(), Failure::hold("LOADING", ""), lost] {
        let mut breaker = breaker();
        assert!(breaker.on_failure(&failure, Instant::now()), "{failure:?}");
        assert_eq!(breaker.admit(), Admission::Refused);
    }
}

#[test]
fn soft_signals_open_after_three_in_a_row() {
    let (mut breaker, now) = (breaker(), Instant::now());
    for _ in 0..2 {
        assert!(!breaker.on_failure(&timeout(), now));
        assert!(!breaker.on_failure(&timeout(), now));
        assert_eq!(breaker.admit(), Admission::Free);
        breaker.on_batch(now, GOAL, now);
    }
    assert!(!breaker.on_failure(&timeout(), now));
    assert!(!breaker.on_failure(&timeout(), now));
    assert!(breaker.on_failure(&timeout(), now));
    assert_eq!(breaker.admit(), Admission::Refused);
}

/// Pairs of soft signals, with `fine` batches after each; how many signals it takes until the breaker opens.
fn signals_until_open(fine: usize, pause: Duration) -> Option<u32> {
    let (mut breaker, mut now) = (breaker(), Instant::now());
    for number in 1..=60 {
        if breaker.on_failure(&timeout(), now) {
            return Some(number);
        }
        if number % 2 == 0 {
            (0..fine).for_each(|_| breaker.on_batch(now, GOAL, now));
        }
        now += pause;
    }
    None
}

#[test]
fn soft_signals_open_when_most_of_many_are() {
    // Of 20 batches 14 were soft signals.
    assert_eq!(signals_until_open(1, Duration::ZERO), Some(14));
    assert_eq!(signals_until_open(3, Duration::ZERO), None, "two fifths of them is not most");
    assert_eq!(signals_until_open(1, Duration::from_millis(500)), None, "there are never 20 within 5 s");
    assert!(signals_until_open(1, Duration::from_millis(150)).is_some());
}

#[test]
fn faults_of_units_and_of_our_own_open_nothing() {
    let (mut breaker, now) = (breaker(), Instant::now());
    let dead = Failure::dead(ReasonClass::WrongType, Executed::No, "WRONGTYPE", "");
    for _ in 0..100 {
        assert!(!breaker.on_failure(&dead, now));
        assert!(!breaker.on_failure(&Failure::hold(Failure::NO_CONNECTION, ""), now));
    }
    assert_eq!(breaker.admit(), Admission::Free);
}

#[test]
fn probe_that_is_late_once_opens_nothing() {
    let (mut breaker, now) = (breaker(), Instant::now());
    let late = Failure::hold(Failure::TIMEOUT, "");
    assert!(!breaker.on_failure(&late, now));
    assert!(!breaker.on_failure(&late, now));
    assert!(breaker.on_failure(&late, now));
}

#[test]
fn probes_come_later_the_longer_it_lasts() {
    let mut breaker = breaker();
    let start = Instant::now();
    open(&mut breaker, start);
    let mut now = start;
    for _ in 0..2_000 {
        let next = breaker.next_probe_at().expect("an open target is probed");
        let longest = ((now - start) / 10).clamp(backoff::MIN_PROBE_INTERVAL, Duration::from_secs(5));
        assert!(next > now && next - now <= longest);
        now = next;
        breaker.on_probe(Err(&Failure::hold("LOADING", "")), now);
    }
    assert!(now - start > Duration::from_secs(3600));
    match breaker.state() {
        State::Open { since, reason, .. } => assert_eq!((*since, &*reason.code), (start, "LOADING")),
        state => panic!("{state:?}"),
    }
}

/// How long a probe waits for an answer that does not come.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Lets an outage that all probes find go on until `end`. When the first probe behind it was begun, and how many there
/// were. Each probe takes that long.
fn endure(breaker: &mut Breaker, reason: &Failure, takes: Duration, end: Instant) -> (Instant, u32) {
    let (mut ended, mut probes) = (Instant::now(), 0);
    loop {
        let begun = breaker.next_probe_at().expect("an open target is probed").max(ended);
        probes += 1;
        if begun >= end {
            return (begun, probes);
        }
        breaker.on_probe(Err(reason), begun);
        ended = begun + takes;
    }
}

#[test]
fn half_an_hour_spends_no_attempt_and_is_noticed_to_be_over_within_five_seconds() {
    let policy = Policy { max_retries: 0, base: Duration::from_millis(200), cap: Duration::from_secs(30) };
    let silent = Failure::hold(Failure::TIMEOUT, "");
    let kinds = [
        (refused(), Duration::ZERO),
        (Failure::hold("LOADING", ""), Duration::ZERO),
        (Failure::hold("READONLY", ""), Duration::ZERO),
        (silent, PROBE_TIMEOUT),
        (out_of_memory(), Duration::ZERO),
    ];
    for (seed, (reason, takes)) in (0..50).zip(kinds.iter().cycle()) {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut breaker = Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(seed), start);
        let end = start + Duration::from_secs(1800);
        open(&mut breaker, start);
        // Whatever a batch met that was under way is held, or made again alone.
        assert_eq!(decide(&policy, History::default(), reason, &mut rng), Verdict::Hold);
        let under_way = decide(&policy, History::default(), &timeout(), &mut rng);
        assert!(matches!(under_way, Verdict::Suspect { strikes: 0, .. }), "{under_way:?}");
        let (noticed, probes) = endure(&mut breaker, reason, *takes, end);
        let meanwhile = if is_out_of_memory(reason) { Admission::Freeing } else { Admission::Refused };
        assert_eq!(breaker.admit(), meanwhile);
        assert!(noticed - end <= Duration::from_secs(5), "it was noticed {:?} late", noticed - end);
        // Every 5 s, and more often in the first minute.
        assert!((360..520).contains(&probes), "{probes} probes");
        breaker.on_probe(Ok(()), noticed);
        assert_eq!(breaker.admit(), Admission::Trial);
    }
}

#[test]
fn probe_that_waits_in_vain_makes_an_outage_no_longer() {
    let silent = Failure::hold(Failure::TIMEOUT, "");
    for seed in 0..2_000 {
        let start = Instant::now();
        let mut breaker = Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(seed), start);
        open(&mut breaker, start);
        let end = start + Duration::from_millis(5 * seed);
        let (noticed, _) = endure(&mut breaker, &silent, PROBE_TIMEOUT, end);
        assert!(noticed - end <= Duration::from_secs(1), "{:?} after {:?}", noticed - end, end - start);
    }
}

#[test]
fn ramp_doubles_with_each_clean_round_trip_until_it_is_as_before() {
    let (mut breaker, start) = (breaker(), Instant::now());
    half_open(&mut breaker, start);
    assert_eq!(breaker.next_probe_at(), None);
    assert_eq!(breaker.admit(), Admission::Trial);
    assert_eq!(breaker.admit(), Admission::Refused, "the trial is granted once");
    breaker.on_batch(start, GOAL, start);
    let (mut now, mut steps) = (start, Vec::new());
    while let State::Ramp { batches, stepped_at, next_step_at, .. } = *breaker.state() {
        assert_eq!(breaker.admit(), Admission::Ramp(batches));
        steps.push(batches);
        assert!(next_step_at - stepped_at <= RAMP_SPREAD);
        let before = stepped_at - Duration::from_millis(1);
        breaker.on_batch(before, GOAL, next_step_at);
        assert_eq!(breaker.admit(), Admission::Ramp(batches), "what was sent before the step says nothing of it");
        now = next_step_at;
        breaker.on_batch(stepped_at, GOAL, now);
    }
    assert_eq!(steps, [1, 2, 4]);
    assert_eq!(breaker.state(), &State::Closed);
    assert_eq!(breaker.admit(), Admission::Free);
    assert!(now - start <= RAMP_SPREAD * 3);
}

#[test]
fn fleet_that_is_told_of_a_return_together_goes_on_one_after_the_other() {
    let start = Instant::now();
    let mut steps: Vec<Duration> = (0..10)
        .map(|seed| {
            let mut breaker = Breaker::new(Duration::from_secs(5), fastrand::Rng::with_seed(seed), start);
            ramp(&mut breaker, start);
            let State::Ramp { next_step_at, .. } = *breaker.state() else { panic!("it is in the ramp") };
            next_step_at - start
        })
        .collect();
    steps.sort();
    let least = steps.windows(2).map(|two| two[1] - two[0]).min().expect("there are ten");
    assert!(least >= Duration::from_millis(1), "two go on together: {steps:?}");
    assert!(steps[9] - steps[0] >= RAMP_SPREAD / 2, "{steps:?}");
}

#[test]
fn failures_in_the_ramp_open_it_or_begin_it_anew() {
    let (mut breaker, start) = (breaker(), Instant::now());
    ramp(&mut breaker, start);
    let later = start + RAMP_SPREAD;
    breaker.on_batch(start, GOAL, later);
    assert_eq!(breaker.admit(), Admission::Ramp(2));
    assert!(!breaker.on_failure(&timeout(), later), "one timeout may be chance");
    assert_eq!(breaker.admit(), Admission::Ramp(1));
    assert!(breaker.on_failure(&refused(), later));
    assert_eq!(breaker.admit(), Admission::Refused);
}

#[test]
fn ramp_ends_with_the_backlog() {
    let (mut breaker, now) = (breaker(), Instant::now());
    ramp(&mut breaker, now);
    breaker.on_nothing_left();
    assert_eq!(breaker.state(), &State::Closed);
    open(&mut breaker, now);
    breaker.on_nothing_left();
    assert_eq!(breaker.state().as_str(), "open", "nothing to do says nothing of the target");
}

#[test]
fn full_memory_lets_pass_what_needs_none() {
    let (mut breaker, now) = (breaker(), Instant::now());
    assert!(breaker.on_failure(&out_of_memory(), now));
    assert_eq!((breaker.state().as_str(), breaker.admit()), ("open", Admission::Freeing));
    assert!(!breaker.on_failure(&out_of_memory(), now), "it is known");
    breaker.on_batch(now, GOAL, now);
    assert_eq!(breaker.admit(), Admission::Freeing, "that something passes says nothing of the rest");
    breaker.on_probe(Err(&out_of_memory()), now);
    assert_eq!(breaker.admit(), Admission::Freeing);
    assert!(breaker.on_failure(&refused(), now), "now it is down as well");
    assert_eq!(breaker.admit(), Admission::Refused);
    breaker.on_probe(Err(&out_of_memory()), now);
    assert_eq!(breaker.admit(), Admission::Freeing);
    breaker.on_probe(Ok(()), now);
    assert_eq!(breaker.admit(), Admission::Trial);
}

#[test]
fn trial_that_was_not_sent_is_granted_again() {
    let (mut breaker, now) = (breaker(), Instant::now());
    half_open(&mut breaker, now);
    assert_eq!(breaker.admit(), Admission::Trial);
    breaker.on_trial_not_sent();
    assert_eq!(breaker.admit(), Admission::Trial);
}

#[test]
fn failed_trial_opens_it_again_and_the_outage_goes_on() {
    let (mut breaker, start) = (breaker(), Instant::now());
    half_open(&mut breaker, start);
    assert_eq!(breaker.admit(), Admission::Trial);
    let later = start + Duration::from_secs(40);
    assert!(breaker.on_failure(&timeout(), later), "one timeout is enough for a trial");
    let next = breaker.next_probe_at().expect("an open target is probed");
    assert!(next - later > Duration::from_secs(3), "a tenth of 40 s, not of nothing");
}

#[test]
fn batches_that_end_after_it_opened_do_not_close_it() {
    let (mut breaker, now) = (breaker(), Instant::now());
    open(&mut breaker, now);
    breaker.on_batch(now, GOAL, now);
    assert!(!breaker.on_failure(&refused(), now + Duration::from_secs(1)));
    assert_eq!(breaker.admit(), Admission::Refused);
    breaker.on_probe(Ok(()), now);
    breaker.on_batch(now, GOAL, now);
    assert_eq!(breaker.admit(), Admission::Trial, "no trial was granted before");
}
