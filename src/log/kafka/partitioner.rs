//! Which partition a key goes to: the one that Java's client would choose, so that whatever else produces into a topic
//! with the same keys keeps their order.

/// The partition of `count` that records with this key go to.
pub(super) fn partition_of(key: &[u8], count: u32) -> u32 {
    (murmur2(key) & 0x7fff_ffff) % count.max(1)
}

/// MurmurHash2 with the seed that Kafka uses.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    // Kafka's lengths fit into 31 bits.
    let mut hash = SEED ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut word = u32::from_le_bytes(*word).wrapping_mul(M);
        word ^= word >> 24;
        hash = hash.wrapping_mul(M) ^ word.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (at, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * at);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("it is hexadecimal");
        if hex == "-" { Vec::new() } else { (0..hex.len()).step_by(2).map(byte).collect() }
    }

    #[test]
    fn keys_go_where_the_java_client_sends_them() {
        let mut lines = 0;
        for line in include_str!("partitioner/java.txt").lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(' ').collect();
            let key = bytes(fields[0]);
            assert_eq!((murmur2(&key) as i32).to_string(), fields[1], "{line}");
            assert_eq!(partition_of(&key, 3).to_string(), fields[2], "{line}");
            assert_eq!(partition_of(&key, 50).to_string(), fields[3], "{line}");
            lines += 1;
        }
        assert_eq!(lines, 16);
    }

    #[test]
    fn one_partition_takes_every_key() {
        assert_eq!(partition_of(b"any", 1), 0);
        assert_eq!(partition_of(b"any", 0), 0, "a topic without partitions is asked for by nobody");
    }
}
