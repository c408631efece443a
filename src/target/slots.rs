//! What happened lately, in slots of time: a slot is forgotten when its place is needed again.

use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Slots<T, const N: usize> {
    start: Instant,
    width: Duration,
    /// Each with its number.
    slots: [(u64, T); N],
}

impl<T: Copy + Default, const N: usize> Slots<T, N> {
    /// `width`: how long a slot lasts.
    pub fn new(width: Duration, now: Instant) -> Self {
        Self { start: now, width, slots: [(0, T::default()); N] }
    }

    /// The slot of this moment.
    pub fn current(&mut self, now: Instant) -> &mut T {
        let number = self.number(now);
        let slot = &mut self.slots[(number % N as u64) as usize];
        if slot.0 != number {
            *slot = (number, T::default());
        }
        &mut slot.1
    }

    /// What is not forgotten, each with how many slots ago it was: 0 is the slot of this moment.
    pub fn recent(&self, now: Instant) -> impl Iterator<Item = (u64, T)> {
        let number = self.number(now);
        let age = move |(slot, held): &(u64, T)| Some((number.checked_sub(*slot)?, *held));
        self.slots.iter().filter_map(age).filter(|(age, _)| *age < N as u64)
    }

    fn number(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.start).as_millis() / self.width.as_millis()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_ago_is_forgotten() {
        let start = Instant::now();
        let at = |tenths: u32| start + Duration::from_millis(100) * tenths;
        let mut slots = Slots::<u32, 3>::new(Duration::from_millis(100), start);
        *slots.current(at(0)) += 1;
        *slots.current(at(2)) += 5;
        *slots.current(at(2)) += 5;
        let held = |slots: &Slots<u32, 3>, now| {
            let mut held: Vec<_> = slots.recent(now).filter(|(_, held)| *held > 0).collect();
            held.sort_unstable();
            held
        };
        assert_eq!(held(&slots, at(2)), [(0, 10), (2, 1)]);
        assert_eq!(held(&slots, at(3)), [(1, 10)]);
        *slots.current(at(5)) += 2;
        assert_eq!(held(&slots, at(5)), [(0, 2)], "its place was needed again");
        assert_eq!(held(&slots, at(50)), []);
    }
}
