//! A producer that appends to a partition in transactions.

use super::{Body, Kafka, NOBODY, Sender, batch_of_one, ends_well, unique};

/// A producer of transactions, one after the other.
pub struct Transactional<'a> {
    kafka: &'a Kafka,
    name: String,
    topic: &'a str,
    partition: i32,
    producer: Sender,
}

impl Kafka {
    /// A producer that appends to a partition in transactions.
    pub fn transactional<'a>(&'a self, topic: &'a str, partition: i32) -> Transactional<'a> {
        let name = unique("producer");
        // FindCoordinator 2: where nobody has asked for one yet, there is none.
        let mut coordinator = Body::default();
        coordinator.string(&name).i8(1);
        self.ask(10, 2, &coordinator);
        // InitProducerId 0
        let mut body = Body::default();
        body.string(&name).i32(60_000);
        let mut producer = NOBODY;
        let begin = ends_well(|| {
            let mut answer = self.ask(22, 0, &body);
            answer.skip(4);
            let error = answer.i16();
            producer = Sender { id: answer.i64(), epoch: answer.i16(), sequence: 0 };
            error
        });
        assert_eq!(begin, 0, "there is no producer of transactions");
        Transactional { kafka: self, name, topic, partition, producer }
    }
}

impl Transactional<'_> {
    /// Appends a record in the transaction that is open, or is opened with it.
    pub fn produce(&mut self, key: &[u8], value: &[u8]) {
        // AddPartitionsToTxn 0
        let mut body = self.named();
        body.i32(1).string(self.topic).i32(1).i32(self.partition);
        let add = || {
            let mut answer = self.kafka.ask(24, 0, &body);
            answer.skip(8).string();
            answer.skip(8);
            answer.i16()
        };
        // The one before may not have ended everywhere.
        assert_eq!(ends_well(add), 0, "the transaction does not begin");
        let mut name = Body::default();
        name.string(&self.name);
        self.kafka.append(&name, self.topic, self.partition, &batch_of_one(&self.producer, key, value));
        self.producer.sequence += 1;
    }

    pub fn commit(&mut self) {
        self.end(true);
    }

    pub fn abort(&mut self) {
        self.end(false);
    }

    fn end(&mut self, commits: bool) {
        // EndTxn 0
        let mut body = self.named();
        body.i8(i8::from(commits));
        let end = || {
            let mut answer = self.kafka.ask(26, 0, &body);
            answer.skip(4);
            answer.i16()
        };
        assert_eq!(ends_well(end), 0, "the transaction does not end");
    }

    fn named(&self) -> Body {
        let mut body = Body::default();
        body.string(&self.name).i64(self.producer.id).i16(self.producer.epoch);
        body
    }
}
