//! Who of a group gets which partitions. The leader of a generation decides it from what each member says of itself;
//! the same words give the same plan.
//!
//! What is given out is a *unit*: partition *p* of all topics of a target, since the lanes of a target are one member's
//! business. Invariants of a plan:
//!
//! - A partition is in one assignment at most, and in none but its owner's as long as a member says that it owns it:
//!   what moves is first given up, and given out in the next generation.
//! - Units stay where they are, as far as the numbers of units that members have differ by one at most.
//! - Members that mean different servers by the same target get nothing of it, none of them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::TopicPartition;

/// What a member says of itself when it joins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemberView {
    pub(super) id: String,
    pub(super) targets: Vec<TargetView>,
    pub(super) owned: BTreeSet<TopicPartition>,
    /// The generation in which it got what it owns; -1 if it is new.
    pub(super) generation: i32,
}

/// A target as a member knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetView {
    pub(super) name: Arc<str>,
    pub(super) fingerprint: Arc<str>,
    /// Its topics, and how many partitions the member has seen of each.
    pub(super) topics: Vec<(Arc<str>, i32)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Of every member, though it may be empty.
    pub(super) assignments: BTreeMap<String, BTreeSet<TopicPartition>>,
    pub(super) conflicts: Vec<Conflict>,
}

/// A target that is not the same server for all members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) target: Arc<str>,
    pub(super) fingerprints: Vec<Arc<str>>,
}

#[derive(Default)]
struct Target {
    fingerprints: BTreeSet<Arc<str>>,
    /// The most partitions that any member has seen: they only ever grow in number.
    topics: BTreeMap<Arc<str>, i32>,
    members: Vec<usize>,
}

struct Unit {
    partitions: Vec<TopicPartition>,
    eligible: Vec<usize>,
    owner: Option<usize>,
}

pub(super) fn assign(members: &[MemberView]) -> Plan {
    let mut members: Vec<&MemberView> = members.iter().collect();
    members.sort_by(|one, other| one.id.cmp(&other.id));
    let (agreed, conflicts) = targets(&members);
    let claims = claims(&members);
    let units = units(&members, agreed, &claims);
    let places = balance(&units, members.len());
    let mut assignments: BTreeMap<String, BTreeSet<TopicPartition>> =
        members.iter().map(|member| (member.id.clone(), BTreeSet::new())).collect();
    for (unit, place) in units.into_iter().zip(places) {
        let assigned = assignments.get_mut(&members[place].id).expect("every member has an assignment");
        for partition in unit.partitions {
            let claimed_by_others =
                claims.get(&partition).is_some_and(|owners| owners.iter().any(|&owner| owner != place));
            if !claimed_by_others {
                assigned.insert(partition);
            }
        }
    }
    Plan { assignments, conflicts }
}

/// The targets that all who know them mean alike, and the others.
fn targets(members: &[&MemberView]) -> (Vec<Target>, Vec<Conflict>) {
    let mut targets: BTreeMap<Arc<str>, Target> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        for view in &member.targets {
            let target = targets.entry(view.name.clone()).or_default();
            target.fingerprints.insert(view.fingerprint.clone());
            target.members.push(index);
            for (topic, partitions) in &view.topics {
                let most = target.topics.entry(topic.clone()).or_default();
                *most = (*most).max(*partitions);
            }
        }
    }
    let mut agreed = Vec::new();
    let mut conflicts = Vec::new();
    for (name, target) in targets {
        if target.fingerprints.len() > 1 {
            conflicts.push(Conflict { target: name, fingerprints: target.fingerprints.into_iter().collect() });
        } else {
            agreed.push(target);
        }
    }
    (agreed, conflicts)
}

/// Who says that it owns a partition. More than one only where something went wrong: then all give it up.
fn claims(members: &[&MemberView]) -> BTreeMap<TopicPartition, Vec<usize>> {
    let mut claims: BTreeMap<TopicPartition, Vec<usize>> = BTreeMap::new();
    for (index, member) in members.iter().enumerate() {
        for partition in &member.owned {
            claims.entry(partition.clone()).or_default().push(index);
        }
    }
    claims
}

fn units(members: &[&MemberView], targets: Vec<Target>, claims: &BTreeMap<TopicPartition, Vec<usize>>) -> Vec<Unit> {
    let mut units = Vec::new();
    for target in targets {
        let count = target.topics.values().copied().max().unwrap_or(0);
        for index in 0..count {
            let topics = target.topics.iter().filter(|(_, partitions)| index < **partitions);
            let partitions: Vec<TopicPartition> =
                topics.map(|(topic, _)| TopicPartition { topic: topic.clone(), partition: index }).collect();
            let mut owned: BTreeMap<usize, usize> = BTreeMap::new();
            for owner in partitions.iter().filter_map(|partition| claims.get(partition)).flatten() {
                if target.members.contains(owner) {
                    *owned.entry(*owner).or_default() += 1;
                }
            }
            let owner = owned
                .into_iter()
                .max_by_key(|&(member, count)| (count, members[member].generation, Reverse(member)))
                .map(|(member, _)| member);
            units.push(Unit { partitions, eligible: target.members.clone(), owner });
        }
    }
    units
}

/// The member of each unit: its owner, unless another one has fewer by two.
fn balance(units: &[Unit], members: usize) -> Vec<usize> {
    let mut loads = vec![0_usize; members];
    for owner in units.iter().filter_map(|unit| unit.owner) {
        loads[owner] += 1;
    }
    let mut places: Vec<usize> = Vec::with_capacity(units.len());
    for unit in units {
        places.push(unit.owner.unwrap_or_else(|| {
            let place = least_loaded(unit, &loads);
            loads[place] += 1;
            place
        }));
    }
    // Each move brings two loads closer together, so that it ends.
    while let Some((unit, to)) = best_move(units, &places, &loads) {
        loads[places[unit]] -= 1;
        loads[to] += 1;
        places[unit] = to;
    }
    places
}

fn least_loaded(unit: &Unit, loads: &[usize]) -> usize {
    let place = unit.eligible.iter().copied().min_by_key(|&member| (loads[member], member));
    place.expect("a unit is of a target that some member knows")
}

/// The move that evens out most; of several, one of a unit that nobody owns.
fn best_move(units: &[Unit], places: &[usize], loads: &[usize]) -> Option<(usize, usize)> {
    let moves = units.iter().enumerate().filter_map(|(index, unit)| {
        let to = least_loaded(unit, loads);
        let gain = loads[places[index]].checked_sub(loads[to]).filter(|&gain| gain >= 2)?;
        Some(((gain, unit.owner != Some(places[index]), index), to))
    });
    moves.max().map(|((_, _, index), to)| (index, to))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LANES: [&str; 3] = [".high", "", ".low"];

    fn target(name: &str, fingerprint: &str, partitions: i32) -> TargetView {
        let topics = LANES.map(|lane| (format!("{name}{lane}").into(), partitions)).to_vec();
        TargetView { name: name.into(), fingerprint: fingerprint.into(), topics }
    }

    fn member(id: &str, targets: Vec<TargetView>) -> MemberView {
        MemberView { id: id.into(), targets, owned: BTreeSet::new(), generation: -1 }
    }

    /// Lets every member do as it is told: give up, and claim what it has in the next generation.
    fn obey(members: &mut [MemberView], plan: &Plan, generation: i32) -> bool {
        let mut gave_up = false;
        for member in members {
            let assigned = &plan.assignments[&member.id];
            gave_up |= !member.owned.is_subset(assigned);
            member.owned = assigned.clone();
            member.generation = generation;
        }
        gave_up
    }

    /// Plans until nothing moves; no partition may ever have two owners.
    fn settle(members: &mut [MemberView]) -> Plan {
        for generation in 0..10 {
            let plan = assign(members);
            for (id, assigned) in &plan.assignments {
                for other in members.iter().filter(|other| other.id != *id) {
                    assert!(assigned.is_disjoint(&other.owned), "{id} got what {} has not given up", other.id);
                }
            }
            if !obey(members, &plan, generation) {
                return plan;
            }
        }
        panic!("the group does not come to rest");
    }

    fn loads(plan: &Plan) -> Vec<usize> {
        let mut loads: Vec<usize> = plan.assignments.values().map(|assigned| assigned.len() / LANES.len()).collect();
        loads.sort_unstable();
        loads
    }

    #[test]
    fn lanes_of_a_partition_go_to_one_member() {
        let targets = vec![target("a", "x", 3), target("b", "y", 4)];
        let mut members = [member("1", targets.clone()), member("2", targets)];
        let plan = settle(&mut members);
        assert_eq!(loads(&plan), [3, 4]);
        for assigned in plan.assignments.values() {
            for partition in assigned {
                let base = partition.topic.split('.').next().expect("a name");
                for lane in LANES {
                    let sibling =
                        TopicPartition { topic: format!("{base}{lane}").into(), partition: partition.partition };
                    assert!(assigned.contains(&sibling), "{sibling:?} is elsewhere");
                }
            }
        }
    }

    #[test]
    fn newcomer_gets_what_was_given_up_in_the_next_generation() {
        let targets = vec![target("a", "x", 4)];
        let mut members = vec![member("1", targets.clone())];
        settle(&mut members);
        members.push(member("2", targets));
        let first = assign(&members);
        assert_eq!(first.assignments["2"], BTreeSet::new(), "nothing is given up yet");
        assert_eq!(first.assignments["1"].len(), 6, "half of it must be given up");
        assert!(obey(&mut members, &first, 2));
        let second = assign(&members);
        assert_eq!(second.assignments["1"], first.assignments["1"]);
        assert_eq!(second.assignments["2"].len(), 6);
    }

    #[test]
    fn leaver_moves_only_its_own() {
        let targets = vec![target("a", "x", 6)];
        let mut members: Vec<MemberView> = ["1", "2", "3"].map(|id| member(id, targets.clone())).to_vec();
        settle(&mut members);
        members.remove(0);
        let before = members.clone();
        let plan = settle(&mut members);
        for member in before {
            assert!(member.owned.is_subset(&plan.assignments[&member.id]));
        }
        assert_eq!(loads(&plan), [3, 3]);
    }

    #[test]
    fn members_that_mean_different_servers_get_nothing() {
        let mut members = [
            member("1", vec![target("a", "redis-a:6379/0", 2), target("b", "y", 2)]),
            member("2", vec![target("a", "redis-b:6379/0", 2), target("b", "y", 2)]),
        ];
        let plan = settle(&mut members);
        let both = vec!["redis-a:6379/0".into(), "redis-b:6379/0".into()];
        assert_eq!(plan.conflicts, [Conflict { target: "a".into(), fingerprints: both }]);
        assert_eq!(loads(&plan), [1, 1]);
        assert!(plan.assignments.values().flatten().all(|partition| partition.topic.starts_with('b')));
    }

    #[test]
    fn member_gets_only_targets_that_it_knows() {
        let mut members =
            [member("1", vec![target("a", "x", 3), target("b", "y", 3)]), member("2", vec![target("b", "y", 3)])];
        let plan = settle(&mut members);
        assert!(plan.assignments["2"].iter().all(|partition| partition.topic.starts_with('b')));
        assert_eq!(loads(&plan), [3, 3]);
    }

    #[test]
    fn partition_that_two_claim_is_given_up_by_both() {
        let targets = vec![target("a", "x", 1)];
        let mut members = [member("1", targets.clone()), member("2", targets)];
        let twice: BTreeSet<TopicPartition> = [TopicPartition { topic: "a".into(), partition: 0 }].into();
        members[0].owned = twice.clone();
        members[1].owned = twice;
        let plan = assign(&members);
        assert!(plan.assignments.values().flatten().all(|partition| &*partition.topic != "a"));
    }

    proptest! {
        #[test]
        fn group_that_changes_comes_to_rest_even_and_whole(
            steps in prop::collection::vec((any::<bool>(), 0..8_usize), 1..12),
            partitions in prop::collection::vec(0..7_i32, 1..4),
        ) {
            let targets: Vec<TargetView> = partitions
                .iter()
                .enumerate()
                .map(|(index, count)| target(&format!("t{index}"), "x", *count))
                .collect();
            let mut members = vec![member("first", targets.clone())];
            for (step, (joins, which)) in steps.into_iter().enumerate() {
                if joins || members.len() == 1 {
                    members.push(member(&format!("m{which}-{step}"), targets.clone()));
                } else {
                    members.remove(which % members.len());
                }
                let plan = settle(&mut members);
                let given: usize = plan.assignments.values().map(BTreeSet::len).sum();
                let all = usize::try_from(partitions.iter().sum::<i32>()).expect("a small number") * LANES.len();
                prop_assert_eq!(given, all);
                let loads = loads(&plan);
                prop_assert!(loads[loads.len() - 1] - loads[0] <= 1, "{:?}", loads);
                prop_assert_eq!(assign(&members), plan, "what has come to rest stays");
            }
        }
    }
}
