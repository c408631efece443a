use super::{
    sim::{Health, Sim},
    *,
};
use crate::target::MAX_BATCH_UNITS;

const SECOND: Duration = Duration::from_secs(1);
const LIMITS: Limits = Limits { max_batches: 4, max_rate: 20_000, adaptive: true };
const NO_CEILING: Limits = Limits { max_batches: 8, max_rate: 0, adaptive: true };
const ENDLESS: usize = 1 << 40;

fn limiter(limits: Limits) -> (Limiter, Instant) {
    let now = Instant::now();
    (Limiter::new(limits, now), now)
}

fn round(units: usize, took: Duration, now: Instant) -> Round {
    Round { units, at_limit: true, begun: now, took }
}

#[test]
fn ceiling_holds_in_any_tenth_of_a_second_and_is_reached() {
    for max_rate in [3, 50, 1000, 7919, 20_000, 60_000] {
        let mut sim = Sim::new(1, Limits { max_rate, ..LIMITS }, ENDLESS);
        let start = sim.now;
        sim.run(10 * SECOND);
        let sent = sim.units(start, sim.now);
        let wanted = 10 * max_rate as usize;
        assert!(sent <= wanted + MAX_BATCH_UNITS, "{sent} in 10 s at {max_rate}/s");
        assert!(sent * 100 >= wanted * 97, "{sent} in 10 s at {max_rate}/s");
        // And where there is nothing to send for a while, in between.
        for pause in [5, 30, 400, 2000] {
            sim.hand_in(0, 0);
            sim.run(Duration::from_millis(pause));
            sim.hand_in(0, ENDLESS);
            sim.run(SECOND / 2);
        }
        let most = sim.most_units_within(0, SECOND / 10);
        let allowed = max_rate as usize / 10 + MAX_BATCH_UNITS;
        assert!(most <= allowed, "{most} within 100 ms at {max_rate}/s");
    }
}

#[test]
fn what_comes_alone_does_not_wait() {
    let (mut limiter, now) = limiter(LIMITS);
    for number in 0..1000 {
        let now = now + number * Duration::from_millis(1);
        assert_eq!(limiter.grant(1, now), Ok(1), "task {number} of a thousand a second");
        limiter.spend(1, now);
    }
}

#[test]
fn what_was_not_sent_spends_nothing() {
    let (mut limiter, now) = limiter(Limits { max_rate: 100, ..LIMITS });
    for _ in 0..1000 {
        // Granted, and superseded or expired before it was sent.
        assert_eq!(limiter.grant(1, now), Ok(1));
        limiter.spend(0, now);
    }
    limiter.spend(2, now);
    assert!(limiter.grant(1, now).is_err());
}

#[test]
fn pause_is_not_made_up_for_by_a_burst() {
    let (mut limiter, now) = limiter(LIMITS);
    let later = now + 3600 * SECOND;
    assert_eq!(limiter.grant(ENDLESS, later), Ok(MAX_BATCH_UNITS));
    limiter.spend(MAX_BATCH_UNITS, later);
    let next = limiter.grant(ENDLESS, later).expect_err("the bucket is empty");
    assert!(next - later > Duration::from_millis(3), "half a batch takes 3.2 ms");
}

/// How many batches at a time there were in the last part of a run: the fewest, the most, and how often that changed.
fn settled(sim: &Sim, last: Duration) -> (usize, usize, usize) {
    let limits: Vec<usize> =
        sim.limits.iter().filter(|(at, _)| *at >= sim.now - last).map(|(_, limit)| *limit).collect();
    let changes = limits.windows(2).filter(|two| two[0] != two[1]).count();
    (*limits.iter().min().expect("it sends"), *limits.iter().max().expect("it sends"), changes)
}

#[test]
fn it_converges_to_what_a_distant_server_takes_and_stays_there() {
    // 5 ms away, and 0.18 ms of work for a batch: the more at a time the better.
    let mut sim = Sim::new(1, NO_CEILING, ENDLESS);
    sim.server.network = Duration::from_millis(5);
    (0..4).for_each(|_| sim.sidecars[0].limiter.on_timeout(sim.now));
    assert_eq!(sim.sidecars[0].limiter.batches(), 1, "it begins with one");
    sim.run(10 * SECOND);
    assert_eq!(settled(&sim, 5 * SECOND), (8, 8, 0));
}

#[test]
fn it_does_not_swing_on_a_server_that_one_batch_keeps_busy() {
    let mut sim = Sim::new(1, NO_CEILING, ENDLESS);
    sim.server.network = Duration::from_micros(100);
    sim.server.per_unit = Duration::from_micros(20);
    (0..4).for_each(|_| sim.sidecars[0].limiter.on_timeout(sim.now));
    let start = sim.now;
    sim.run(20 * SECOND);
    let (fewest, most, changes) = settled(&sim, 10 * SECOND);
    assert!(most - fewest <= 1, "{fewest} to {most} at a time");
    assert!(changes <= 40, "{changes} changes in 10 s");
    // And the server is not idle for it: 50,000 units a second are what it can do.
    let sent = sim.units(start + 10 * SECOND, sim.now);
    assert!(sent > 450_000, "{sent} in 10 s");
}

#[test]
fn it_backs_off_when_the_server_becomes_slow_and_comes_back_when_it_is_well() {
    let mut sim = Sim::new(1, NO_CEILING, ENDLESS);
    sim.server.network = Duration::from_millis(5);
    sim.run(5 * SECOND);
    assert_eq!(sim.sidecars[0].limiter.batches(), 8);
    sim.server.per_unit = Duration::from_micros(60);
    sim.run(2 * SECOND);
    let slow = sim.sidecars[0].limiter.batches();
    assert!(slow <= 2, "{slow} at a time while a batch of 128 takes 8 ms of the server");
    sim.server.per_unit = Duration::from_micros(1);
    sim.run(10 * SECOND);
    assert_eq!(settled(&sim, SECOND).0, 8);
}

#[test]
fn timeouts_halve_it_down_to_one() {
    let (mut limiter, now) = limiter(NO_CEILING);
    let limits: Vec<usize> = (0..5)
        .map(|_| {
            limiter.on_timeout(now);
            limiter.batches()
        })
        .collect();
    assert_eq!(limits, [4, 2, 1, 1, 1]);
}

#[test]
fn batches_are_as_large_as_the_server_does_in_twenty_milliseconds() {
    for (per_unit, sizes) in [(1, 128..=128), (250, 48..=80), (5000, 16..=16)] {
        let mut sim = Sim::new(1, Limits { max_batches: 1, ..NO_CEILING }, ENDLESS);
        sim.server.per_unit = Duration::from_micros(per_unit);
        sim.run(20 * SECOND);
        let units = sim.sidecars[0].limiter.batch_units();
        assert!(sizes.contains(&units), "{units} of {per_unit} us each");
    }
}

#[test]
fn after_an_outage_batches_begin_small() {
    let (mut limiter, mut now) = limiter(NO_CEILING);
    limiter.on_outage();
    assert_eq!((limiter.batch_units(), limiter.batches()), (16, 8));
    for units in [32, 48, 64] {
        now += SECOND;
        limiter.on_batch(round(limiter.batch_units(), Duration::from_millis(1), now), now);
        assert_eq!(limiter.batch_units(), units);
    }
    limiter.on_batch(round(1, Duration::from_millis(1), now + SECOND), now + SECOND);
    assert_eq!(limiter.batch_units(), 64, "a small batch says nothing of larger ones");
}

#[test]
fn slow_pings_halve_the_rate_until_one_is_fine_again() {
    let (mut limiter, now) = limiter(LIMITS);
    let ping = |limiter: &mut Limiter, millis: u64| {
        let was_on = limiter.brakes();
        let changed = limiter.on_ping(Duration::from_millis(millis), now);
        assert_eq!(changed, was_on != limiter.brakes());
        limiter.ceiling(now).expect("there is one")
    };
    assert_eq!(ping(&mut limiter, 1), 20_000.0);
    assert_eq!(ping(&mut limiter, 2), 20_000.0, "three times as long is not too long");
    (0..10).for_each(|_| assert_eq!(ping(&mut limiter, 9), 10_000.0));
    (0..10).for_each(|_| assert_eq!(ping(&mut limiter, 1), 20_000.0));
    let pings = limiter.pings();
    assert_eq!(pings.last, Some(Duration::from_millis(1)));
    assert!(pings.baseline < Some(Duration::from_millis(2)), "{pings:?}");
}

#[test]
fn what_is_always_so_becomes_the_baseline() {
    let (mut limiter, now) = limiter(LIMITS);
    limiter.on_ping(Duration::from_millis(1), now);
    (0..300).for_each(|_| _ = limiter.on_ping(Duration::from_millis(9), now));
    assert_eq!(limiter.ceiling(now), Some(20_000.0));
}

#[test]
fn busy_target_is_asked_once_a_second_and_an_idle_one_never() {
    let mut sim = Sim::new(1, LIMITS, ENDLESS);
    sim.server.live = Duration::from_millis(1);
    let start = sim.now;
    sim.run(20 * SECOND);
    assert_eq!(sim.sidecars[0].limiter.ceiling(sim.now), Some(20_000.0));
    sim.server.live = Duration::from_millis(20);
    sim.run(10 * SECOND);
    assert_eq!(sim.sidecars[0].limiter.ceiling(sim.now), Some(10_000.0));
    sim.server.live = Duration::from_millis(1);
    sim.run(10 * SECOND);
    assert_eq!(sim.sidecars[0].limiter.ceiling(sim.now), Some(20_000.0));
    let (quick, slow) = (sim.units(start, start + 20 * SECOND), sim.units(start + 25 * SECOND, start + 30 * SECOND));
    assert!(quick > 390_000 && slow < 51_000, "{quick} in 20 s, {slow} in 5 s");
    let (limiter, now) = limiter(LIMITS);
    assert!(!limiter.wants_ping(now + 3600 * SECOND));
}

#[test]
fn without_a_ceiling_the_brake_halves_what_was_sent() {
    let mut sim = Sim::new(1, NO_CEILING, ENDLESS);
    sim.run(10 * SECOND);
    let before = sim.sidecars[0].limiter.rate(sim.now);
    assert_eq!(sim.sidecars[0].limiter.ceiling(sim.now), None);
    sim.server.live = Duration::from_millis(50);
    sim.run(Duration::from_millis(1_500));
    let braked = sim.sidecars[0].limiter.ceiling(sim.now).expect("it brakes");
    assert!((0.2..0.6).contains(&(braked / before)), "{braked} of {before}");
}

#[test]
fn server_that_was_started_again_is_spared_for_half_a_minute() {
    for (max_rate, spared) in [(20_000, 5_000.0), (1000, 250.0), (0, 5_000.0)] {
        let (mut limiter, now) = limiter(Limits { max_rate, ..LIMITS });
        let whole = (max_rate > 0).then(|| f64::from(max_rate));
        assert_eq!((limiter.ceiling(now), limiter.spared_until(now)), (whole, None));
        limiter.on_restart(now);
        let end = now + Duration::from_secs(30);
        let just_before = end - Duration::from_millis(1);
        assert_eq!(limiter.ceiling(just_before), Some(spared));
        assert_eq!(limiter.spared_until(just_before), Some(end));
        assert_eq!((limiter.ceiling(end), limiter.spared_until(end)), (whole, None));
    }
}

#[test]
fn what_is_not_adaptive_is_always_the_same() {
    let (mut limiter, now) = limiter(Limits { adaptive: false, ..NO_CEILING });
    limiter.on_restart(now);
    limiter.on_timeout(now);
    limiter.on_outage();
    limiter.on_ping(Duration::from_millis(1), now);
    limiter.on_ping(SECOND, now);
    limiter.spend(100_000, now);
    assert_eq!((limiter.batches(), limiter.batch_units(), limiter.ceiling(now)), (8, MAX_BATCH_UNITS, None));
    assert!(!limiter.wants_ping(now + SECOND));
}

#[test]
fn measured_rate_is_that_of_the_last_second() {
    let (mut limiter, now) = limiter(NO_CEILING);
    let at = |millis: u64| now + Duration::from_millis(millis);
    (0..3000).step_by(10).for_each(|millis| limiter.spend(5, at(millis)));
    assert_eq!(limiter.rate(at(3000)), 500.0);
    assert_eq!(limiter.rate(at(3500)), 250.0);
    assert_eq!(limiter.rate(at(4100)), 0.0);
    limiter.spend(7, at(100_000));
    assert_eq!(limiter.rate(at(100_100)), 7.0);
}

#[test]
fn sidecars_whose_server_returns_come_back_one_by_one() {
    const SIDECARS: usize = 10;
    let mut sim = Sim::new(SIDECARS as u64, LIMITS, 400_000);
    sim.run(SECOND);
    let down = sim.now;
    sim.go_down();
    sim.run(Duration::from_secs(8));
    assert_eq!(sim.units(down, sim.now), 0, "nothing is sent while it is down");
    let returned = sim.now;
    sim.server.health = Health::Well;
    sim.run(10 * SECOND);

    // The first batches come as soon as each has probed, and no later.
    for sidecar in 0..SIDECARS {
        let first = sim.sent.iter().find(|sent| sent.sidecar == sidecar && sent.at > returned).expect("it sends");
        assert!(first.at - returned < SECOND && first.units <= TRIAL, "{first:?}");
        assert!(sim.most_units_within(sidecar, SECOND / 10) <= 2000 + MAX_BATCH_UNITS);
    }
    let per_second = sim.units(returned + 2 * SECOND, returned + 4 * SECOND) / 2;
    assert!(per_second <= SIDECARS * 20_000 + SIDECARS * MAX_BATCH_UNITS, "{per_second} per second");

    // Every one takes its steps, and no two take one together.
    let mut steps: Vec<_> = sim.steps.iter().filter(|step| step.at > returned).collect();
    assert_eq!(steps.len(), SIDECARS * 4, "1, 2, 4, all: {steps:?}");
    steps.sort_by_key(|step| step.at);
    assert!(steps.windows(2).all(|two| two[0].at < two[1].at), "{steps:?}");
    let crowd = |step: &&sim::Step| {
        steps.iter().filter(|other| other.at >= step.at && other.at - step.at < Duration::from_millis(20)).count()
    };
    let most = steps.iter().map(crowd).max();
    assert!(most <= Some(5), "{most:?} steps within 20 ms");
    let spread = steps[steps.len() - 1].at - steps[0].at;
    assert!(spread > Duration::from_millis(500) && spread < 4 * SECOND, "{spread:?}");
}

const TRIAL: usize = crate::target::breaker::TRIAL_UNITS;

#[test]
fn server_that_hangs_and_returns_is_not_given_all_at_once() {
    let mut sim = Sim::new(1, NO_CEILING, ENDLESS);
    sim.run(SECOND);
    sim.server.health = Health::Hangs;
    sim.run(20 * SECOND);
    let asked = sim.units(sim.now - 15 * SECOND, sim.now);
    assert_eq!(asked, 0, "probes alone go there");
    let returned = sim.now;
    sim.server.health = Health::Well;
    sim.run(10 * SECOND);
    let sizes: Vec<usize> = sim.sent.iter().filter(|sent| sent.at > returned).map(|sent| sent.units).take(4).collect();
    assert_eq!(sizes, [16, 32, 48, 64]);
    assert!(sim.sidecars[0].breaker.state() == &crate::target::breaker::State::Closed);
}
