//! A Kafka broker that keeps everything in memory and costs little: librdkafka's mock. What the sidecar itself costs shows
//! better beside it than beside a real one, which takes half of the machine.
//!
//! `mock-broker PARTITIONS TOPIC...` prints its address, and ends when its standard input does.

use std::io::{Read as _, Write as _};

use rdkafka::mocking::MockCluster;

fn main() {
    let mut words = std::env::args().skip(1);
    let partitions = words.next().and_then(|number| number.parse().ok()).expect("the first word is a number");
    let cluster = MockCluster::new(1).expect("the mock can be started");
    for topic in words {
        cluster.create_topic(&topic, partitions, 1).expect("a topic can be made");
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", cluster.bootstrap_servers()).and_then(|()| out.flush()).expect("somebody reads the address");
    let _ = std::io::stdin().read(&mut [0]);
}
