//! Which accepted command a misspelt name may have meant. Only used to word a refusal.

use super::table;

/// The accepted command whose name is at most two edits away, if there is one that is nearest.
pub fn nearest(name: &[u8]) -> Option<&'static str> {
    if name.len() > table::LONGEST_NAME {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    // A short name has a neighbour of two edits whatever it is.
    let most = if upper.len() > 4 { 2 } else { 1 };
    let distances = table::ACCEPTED.iter().map(|spec| (distance(&upper, spec.name.as_bytes()), spec.name));
    distances.filter(|(distance, _)| *distance <= most).min().map(|(_, name)| name)
}

/// Insertions, deletions and substitutions between two names (Levenshtein).
fn distance(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
