use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What Kafka has room for.
const MAX_BYTES: usize = 3072;

const ALL: Bounds = Bounds { until: u64::MAX, max_bytes: usize::MAX };

fn dead() -> UnitEnd {
    UnitEnd::Dead { code: "WRONGTYPE".into(), reason: "wrong-type".into() }
}

fn outcome() -> impl Strategy<Value = UnitEnd> {
    let settled = SETTLED.map(|(_, outcome)| UnitEnd::Settled(outcome));
    prop_oneof![3 => Just(UnitEnd::Unfinished), 3 => prop::sample::select(settled.to_vec()), 1 => Just(dead())]
}

prop_compose! {
    /// A state, its watermark and the end of what was read.
    fn states()(
        watermark in 0..1_000_u64,
        unfinished in prop_oneof![
            prop::collection::btree_set(0..3_000_u64, 1..400),
            Just((0..3_000_u64).step_by(2).collect::<BTreeSet<_>>()),
        ],
        beyond in 0..100_u64,
    )(
        pipelines in prop::collection::vec(
            (any::<prop::sample::Index>(), prop::collection::vec(outcome(), 2..40)), 0..60),
        attempts in prop::collection::vec((any::<prop::sample::Index>(), 0..40_u32, 1..20_u32), 0..300),
        released in any::<bool>(),
        word in prop_oneof![Just(0), 1..5_000_u64],
        watermark in Just(watermark),
        unfinished in Just(unfinished),
        beyond in Just(beyond),
    ) -> (State, u64, u64) {
        let unfinished: Vec<u64> = unfinished.into_iter().map(|offset| watermark + offset).collect();
        let end = unfinished.last().map_or(watermark, |last| last + 1) + beyond;
        let finished = Finished::from_unfinished(watermark, unfinished.iter().copied(), end);
        let mut state = State { boot_id: [7; 16], released, finished, word: watermark + word, ..State::default() };
        if word == 0 {
            state.word = 0;
        }
        state.half_done.extend(pipelines.into_iter().map(|(which, units)| (*which.get(&unfinished), units)));
        let attempts = attempts.into_iter().map(|(which, unit, count)| ((*which.get(&unfinished), unit), count));
        state.attempts.extend(attempts);
        (state, watermark, end)
    }
}

fn without_words(units: &[UnitEnd]) -> Vec<UnitEnd> {
    let unit = |unit: &UnitEnd| UnitEnd::of_number(unit.number()).expect("it has a number");
    units.iter().map(unit).collect()
}

proptest! {
    #[test]
    fn every_state_is_read_as_it_was_written((state, watermark, end) in states()) {
        let encoded = state.encode(watermark, ALL);
        prop_assert_eq!(encoded.until, u64::MAX);
        let read = State::decode(watermark, &encoded.state).expect("it was written just now");
        for offset in watermark..end + 10 {
            prop_assert_eq!(read.finished.contains(offset), state.finished.contains(offset), "{}", offset);
        }
        prop_assert_eq!((read.half_done, read.attempts, read.word), (state.half_done, state.attempts, state.word));
        prop_assert_eq!((read.boot_id, read.released, read.more_may_have_run), ([7; 16], state.released, false));
    }

    /// Whatever there is room for: what is read is the truth below one position and nothing from there on.
    #[test]
    fn a_bounded_state_says_a_prefix_of_the_truth_and_never_more(
        (state, watermark, end) in states(),
        max_bytes in 40..MAX_BYTES,
        asked in prop_oneof![Just(u64::MAX), 0..4_500_u64],
    ) {
        let bounds = Bounds { until: asked.max(watermark), max_bytes };
        let Encoded { state: stored, until } = state.encode(watermark, bounds);
        prop_assert!(stored.len() <= max_bytes, "{} bytes", stored.len());
        let word_len = if state.word == 0 { 0 } else { varint_len(state.word - watermark) };
        prop_assert!((watermark..=bounds.until).contains(&until));
        let read = State::decode(watermark, &stored).expect("it was written just now");
        for offset in watermark..end + 10 {
            let expected = offset < until && state.finished.contains(offset);
            prop_assert_eq!(read.finished.contains(offset), expected, "{} of {}", offset, until);
        }
        let truth: Vec<_> = state.half_done.range(..until).collect();
        prop_assert_eq!(read.half_done.len(), truth.len());
        for ((offset, units), (expected_offset, expected)) in read.half_done.iter().zip(truth) {
            prop_assert_eq!(offset, expected_offset);
            prop_assert_eq!(without_words(units), without_words(expected));
            for (unit, expected) in units.iter().zip(expected) {
                prop_assert!(unit == expected || *unit == UnitEnd::of_number(DEAD).expect("it is one"));
            }
        }
        let attempts: Vec<_> = state.attempts.iter().take(read.attempts.len()).collect();
        prop_assert_eq!(read.attempts.iter().collect::<Vec<_>>(), attempts);
        prop_assert!(read.attempts.keys().all(|(offset, _)| *offset < until));
        let left_out = (until..end).any(|offset| state.finished.contains(offset))
            || state.half_done.range(until..).next().is_some();
        prop_assert_eq!(read.more_may_have_run, left_out);
        prop_assert_eq!(read.word, state.word);
        if until < bounds.until {
            let longer = state.necessary(watermark, until + 1);
            prop_assert!(longer.len() + 2 + word_len > max_bytes, "there was room for more than {}", until);
            prop_assert!(read.attempts.is_empty() || longer.len() + 2 + word_len > max_bytes);
        }
    }

    #[test]
    fn what_was_not_read_again_is_kept(
        earlier in prop::collection::btree_set(0..200_u64, 0..100),
        unfinished in prop::collection::btree_set(0..100_u64, 0..50),
    ) {
        let earlier = Finished::from_unfinished(0, earlier.iter().copied(), 200);
        let mut finished = Finished::from_unfinished(0, unfinished.iter().copied(), 100);
        finished.extend_from(&earlier, 100);
        for offset in 0..210 {
            let expected = if offset < 100 { !unfinished.contains(&offset) } else { earlier.contains(offset) };
            prop_assert_eq!(finished.contains(offset), expected, "{}", offset);
        }
    }

    #[test]
    fn damage_is_never_a_panic(
        watermark in any::<u64>(),
        version in 0..4_u8,
        mut stored in prop::collection::vec(any::<u8>(), 1..200),
    ) {
        stored[0] = version;
        let _ = State::decode(watermark, &stored);
    }

    #[test]
    fn numbers_take_the_bytes_that_were_counted(value in any::<u64>()) {
        let mut packed = Vec::new();
        put_varint(&mut packed, value);
        prop_assert_eq!(packed.len(), varint_len(value));
    }
}

fn golden_state() -> State {
    let mut state = State { boot_id: [1; 16], ..State::default() };
    state.finished = Finished::from_unfinished(10, [10, 12].into_iter(), 20);
    state.half_done.insert(12, vec![UnitEnd::Settled(Outcome::Applied), dead(), UnitEnd::Unfinished]);
    state.attempts.extend([((10, 0), 2), ((12, 2), 20)]);
    state
}

/// These bytes are in journals and in Kafka: a change of the format must go on reading them.
#[test]
fn stored_form_is_stable() {
    let mut golden = vec![2, 0];
    golden.extend_from_slice(&[1; 16]);
    golden.extend_from_slice(&[1, 2, 0b1111_1010, 0b0000_0011]);
    golden.extend_from_slice(&[1, 2, 3, 0x21, 0x00]);
    golden.extend_from_slice(&[2, 0, 2, 2, 84]);
    golden.extend_from_slice(b"\x01\x02\x01\x09WRONGTYPE\x0awrong-type");
    assert_eq!(golden_state().encode(10, ALL).state, golden);
    assert_eq!(State::decode(10, &golden), Some(golden_state()));
    let with_word = State { word: 21, ..golden_state() };
    golden.push(11);
    assert_eq!(with_word.encode(10, ALL).state, golden);
    assert_eq!(State::decode(10, &golden), Some(with_word));
    let numbers = [Outcome::Expired, Outcome::Invalidated, Outcome::Stale, Outcome::Discarded, Outcome::Superseded];
    assert_eq!(numbers.map(|outcome| UnitEnd::Settled(outcome).number()), [3, 4, 5, 6, 7]);

    let bounded = golden_state().encode(10, Bounds { until: 12, max_bytes: 100 });
    let mut golden = vec![2, MORE_MAY_HAVE_RUN];
    golden.extend_from_slice(&[1; 16]);
    golden.extend_from_slice(&[1, 1, 0b0000_0010, 0, 1, 0, 2, 0]);
    assert_eq!(bounded.state, golden);
}

#[test]
fn first_version_is_still_read() {
    let mut golden = vec![1, 0];
    golden.extend_from_slice(&[1; 16]);
    golden.extend_from_slice(&[1, 2, 0b1111_1010, 0b0000_0011]);
    golden.extend_from_slice(b"\x01\x02\x03\x01\x02\x09WRONGTYPE\x0awrong-type\x00");
    golden.extend_from_slice(&[2, 0, 0, 2, 2, 2, 20]);
    assert_eq!(State::decode(10, &golden), Some(golden_state()));
    golden[0] = VERSION + 1;
    assert_eq!(State::decode(10, &golden), None);
}

#[test]
fn a_million_positions_fit() {
    let every_other = (0..1_048_576_u64).step_by(2);
    let state = State { finished: Finished::from_unfinished(0, every_other, 1_048_576), ..State::default() };
    assert!(state.encode(0, ALL).state.len() < 132 * 1024);
    let contiguous = State { finished: Finished::from_unfinished(0, 1..30_000, 1_048_576), ..State::default() };
    assert!(contiguous.encode(0, ALL).state.len() < 64);
}

/// Every other position is finished and every one between has attempts; some are pipelines, half of them with a unit that
/// is dead.
#[test]
fn eight_thousand_positions_fit_in_kafka_and_attempts_are_left_out_first() {
    let unfinished = || (0..8192_u64).step_by(2);
    let mut state = State { finished: Finished::from_unfinished(0, unfinished(), 8192), ..State::default() };
    state.attempts.extend(unfinished().map(|offset| ((offset, 0), 3)));
    let units = 10;
    let mut of_pipelines = 0;
    for offset in unfinished().step_by(41) {
        let mut ends = vec![UnitEnd::Settled(Outcome::Applied); units];
        ends[0] = UnitEnd::Unfinished;
        ends[1] = dead();
        state.half_done.insert(offset, ends);
        of_pipelines += bytes_of_pipeline(units);
    }
    assert!(most_bytes(8192, of_pipelines) <= MAX_BYTES, "a window counts on it");
    let Encoded { state: stored, until } = state.encode(0, Bounds { until: 8192, max_bytes: MAX_BYTES });
    assert_eq!(until, 8192);
    assert!(stored.len() <= MAX_BYTES);
    let read = State::decode(0, &stored).expect("it was written just now");
    assert!((0..8192).all(|offset| read.finished.contains(offset) == (offset % 2 == 1)));
    assert_eq!(read.half_done.len(), state.half_done.len());
    assert!(read.attempts.len() < state.attempts.len());
    assert!(read.attempts.contains_key(&(0, 0)), "those of the lowest positions have room");
}

#[test]
fn what_is_needed_is_never_more_than_was_reserved() {
    for units in [2, 3, 127, 128] {
        for span in [1, 8, 8192, 24_000] {
            let last = span - 1;
            let finished = Finished::from_unfinished(0, (0..span).step_by(2), span);
            let mut state = State { finished, ..State::default() };
            let offset = last - last % 2;
            state.half_done.insert(offset, vec![dead(); units]);
            let necessary = state.necessary(0, span).len() + 2;
            assert!(necessary <= most_bytes(span, bytes_of_pipeline(units)), "{units} units, {span} positions");
        }
    }
}
