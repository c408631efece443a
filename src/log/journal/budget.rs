//! Who may use how much of `max_bytes`. Pure arithmetic under a lock; what the file system itself has left is asked
//! for elsewhere.
//!
//! ```text
//! |<------------- half: guaranteed ------------->|<------- half: first come, first served ------->|
//! | target a | target b | ... one share for each | appends, tables             | reserve (10 %)  |
//!                                                                              ^ appends stop here
//! ```
//!
//! The invariant: a target that keeps within its share is never refused because of what others use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::stats::JournalStats;

/// What space is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// New records: stops where the reserve begins.
    Append,
    /// Checkpoints and tables: what lets a full journal drain.
    Reserve,
}

pub struct Budget {
    max_bytes: u64,
    share: u64,
    stats: Arc<JournalStats>,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    /// By configured target.
    targets: HashMap<Arc<str>, u64>,
    /// Tables, and targets that are not configured any more.
    others: u64,
}

impl Budget {
    pub fn new(max_bytes: u64, targets: &[Arc<str>], stats: Arc<JournalStats>) -> Arc<Self> {
        let share = max_bytes / 2 / targets.len().max(1) as u64;
        let used = Used { targets: targets.iter().map(|target| (target.clone(), 0)).collect(), others: 0 };
        Arc::new(Self { max_bytes, share, stats, used: Mutex::new(used) })
    }

    /// An account that is charged to `target`'s share first.
    pub fn account(self: &Arc<Self>, target: Option<Arc<str>>) -> Account {
        let target = target.filter(|target| self.lock().targets.contains_key(target));
        Account { budget: self.clone(), target }
    }

    /// Whether at least one target could take `bytes` more.
    pub fn any_room(&self, bytes: u64) -> bool {
        let used = self.lock();
        used.targets.keys().any(|target| self.allows(&used, Some(target), bytes, Purpose::Append))
            || self.allows(&used, None, bytes, Purpose::Append)
    }

    /// Whether that target could take `bytes` more for appends.
    pub fn has_room(&self, target: &Arc<str>, bytes: u64) -> bool {
        self.allows(&self.lock(), Some(target), bytes, Purpose::Append)
    }

    fn allows(&self, used: &Used, target: Option<&Arc<str>>, bytes: u64, purpose: Purpose) -> bool {
        let guaranteed = self.share * used.targets.len() as u64;
        let reserve = if purpose == Purpose::Append { self.max_bytes / 10 } else { 0 };
        let common = self.max_bytes.saturating_sub(guaranteed).saturating_sub(reserve);
        let beyond_share = |used: u64| used.saturating_sub(self.share);
        let taken: u64 = used.others + used.targets.values().map(|used| beyond_share(*used)).sum::<u64>();
        let more = match target.and_then(|target| used.targets.get(target)) {
            Some(own) => beyond_share(own + bytes) - beyond_share(*own),
            None => bytes,
        };
        more == 0 || taken + more <= common
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one journal or table has taken of the budget.
pub struct Account {
    budget: Arc<Budget>,
    target: Option<Arc<str>>,
}

impl Account {
    /// Takes `bytes` if they may be had.
    #[must_use]
    pub fn take(&self, bytes: u64, purpose: Purpose) -> bool {
        let mut used = self.budget.lock();
        let allowed = self.budget.allows(&used, self.target.as_ref(), bytes, purpose);
        if allowed {
            self.add(&mut used, bytes);
        }
        allowed
    }

    /// Takes what is on disk already, whatever the limit.
    pub fn take_found(&self, bytes: u64) {
        self.add(&mut self.budget.lock(), bytes);
    }

    pub fn give_back(&self, bytes: u64) {
        let mut used = self.budget.lock();
        let own = self.own(&mut used);
        *own = own.saturating_sub(bytes);
        self.show(&used);
    }

    fn add(&self, used: &mut Used, bytes: u64) {
        *self.own(used) += bytes;
        self.show(used);
    }

    fn own<'a>(&self, used: &'a mut Used) -> &'a mut u64 {
        match &self.target {
            Some(target) => used.targets.entry(target.clone()).or_default(),
            None => &mut used.others,
        }
    }

    fn show(&self, used: &Used) {
        self.budget.stats.set_disk_bytes(used.others + used.targets.values().sum::<u64>());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(targets: &[&str]) -> Arc<Budget> {
        let targets: Vec<Arc<str>> = targets.iter().map(|target| Arc::from(*target)).collect();
        Budget::new(1000, &targets, Arc::default())
    }

    #[test]
    fn target_keeps_its_share_whatever_others_use() {
        let budget = budget(&["a", "b"]);
        let a = budget.account(Some("a".into()));
        assert!(a.take(250 + 400, Purpose::Append), "its share and all that is common");
        assert!(!a.take(1, Purpose::Append));
        let b = budget.account(Some("b".into()));
        assert!(b.take(250, Purpose::Append));
        assert!(!b.take(1, Purpose::Append));
        assert!(b.take(100, Purpose::Reserve));
        assert!(!b.take(1, Purpose::Reserve));
    }

    #[test]
    fn tables_use_the_reserve_but_no_share() {
        let budget = budget(&["a"]);
        let table = budget.account(None);
        assert!(table.take(500, Purpose::Reserve));
        assert!(!table.take(1, Purpose::Reserve));
        assert!(budget.account(Some("a".into())).take(500, Purpose::Append));
        assert!(!budget.any_room(1));
        table.give_back(101);
        assert!(budget.any_room(1));
    }

    #[test]
    fn room_of_a_target_ends_where_the_reserve_begins() {
        let budget = budget(&["a", "b"]);
        let a = Arc::from("a");
        assert!(budget.has_room(&a, 250 + 400));
        assert!(!budget.has_room(&a, 250 + 401));
        assert!(budget.account(Some("b".into())).take(250 + 100, Purpose::Append));
        assert!(budget.has_room(&a, 250 + 300));
        assert!(!budget.has_room(&a, 250 + 301));
    }

    #[test]
    fn bytes_are_shown() {
        let stats = Arc::new(JournalStats::default());
        let budget = Budget::new(1000, &["a".into()], stats.clone());
        let gone = budget.account(Some("gone".into()));
        gone.take_found(2000);
        assert_eq!(stats.disk_bytes(), 2000);
        assert!(!gone.take(1, Purpose::Reserve));
        gone.give_back(1900);
        assert_eq!(stats.disk_bytes(), 100);
    }
}
