//! The clients of the library: made when first needed, with a deadline around each of their calls, and thrown away once
//! one may be stuck. A client that was thrown away closes its connections when the last call on it ends.
//!
//! The library has no timeouts, and tries a call again for as long as it takes; here it is told to try once, so that
//! whoever calls knows what became of each attempt. All of its connections are made here, and thus by the same rules.
//!
//! What it does wrong and cannot be told: a broker that asks it to slow down has done what was asked for, and it asks
//! again. So no quota may be set for this process on producing.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use kafka_protocol::messages::MetadataRequest;
use rskafka::{
    BackoffConfig,
    client::{
        Client, ClientBuilder,
        error::Error,
        partition::{Compression, OffsetAt, PartitionClient, UnknownTopicHandling},
    },
    record::{Record, RecordAndOffset},
    topic::Topic,
};
use tokio::time::{Instant, error::Elapsed, timeout, timeout_at};

use super::{
    config::Config,
    failure::{Cause, Failure, NoClient},
    nodelay,
    security::Security,
    wire::{Address, Dialer},
};

/// The largest answer that is read: a fetch asks for much less, but gets one batch of records whole.
const MAX_ANSWER_BYTES: usize = 32 << 20;

/// Makes clients for one purpose.
pub(super) struct Connector {
    config: Arc<Config>,
    security: Security,
    current: Mutex<Current>,
    /// Held while a client is made: what came of the last attempt, if nothing.
    making: tokio::sync::Mutex<Option<NoClient>>,
}

#[derive(Default)]
struct Current {
    client: Option<Arc<Client>>,
    /// Counts clients.
    generation: u64,
    /// Counts attempts to make one.
    attempts: u64,
}

/// A connection to the broker that leads a partition.
pub(super) struct Leader {
    client: PartitionClient,
    generation: u64,
}

impl Connector {
    pub(super) fn new(config: Arc<Config>, security: Security) -> Self {
        Self { config, security, current: Mutex::default(), making: tokio::sync::Mutex::default() }
    }

    /// Connects to the broker that leads a partition.
    pub(super) async fn leader(&self, topic: &str, partition: u32) -> Result<Leader, Failure> {
        let (generation, client) = self.client().await?;
        let index = i32::try_from(partition).expect("Kafka counts partitions in 31 bits");
        let topic = topic.to_owned();
        let connecting = async move { client.partition_client(topic, index, UnknownTopicHandling::Error).await };
        match self.settle(generation, self.attempt(connecting).await) {
            Ok(client) => {
                // Before anything large is sent.
                if let Err(error) = nodelay::set_on_new_connections(self.config.connect_timeout * 4) {
                    tracing::warn!("Requests to Kafka may be slow: /proc/self/fd cannot be read: {error}");
                }
                Ok(Leader { client, generation })
            }
            Err(failure) => {
                // Who the library takes for the leader may be a memory that it does not correct by itself.
                if failure.cause() == Cause::Moved {
                    let _ = self.topics().await;
                }
                Err(failure)
            }
        }
    }

    /// All topics of the cluster, and in passing what the library knows of their leaders.
    pub(super) async fn topics(&self) -> Result<Vec<Topic>, Failure> {
        let (generation, client) = self.client().await?;
        self.settle(generation, timeout(self.patience(), client.list_topics()).await)
    }

    /// The client from which this leader came is not used again: it may know too little, or be stuck.
    pub(super) fn discard(&self, leader: Leader) {
        self.discard_generation(leader.generation);
    }

    async fn client(&self) -> Result<(u64, Arc<Client>), Failure> {
        if let Some(found) = self.present() {
            return Ok(found);
        }
        let attempts = self.current().attempts;
        let mut failure = self.making.lock().await;
        if let Some(found) = self.present() {
            return Ok(found);
        }
        // An attempt that began and failed while this one waited is as good as its own: else all who wait would make
        // one after the other.
        if let Some(known) = failure.as_ref().filter(|_| self.current().attempts > attempts) {
            return Err(Failure::NoClient(known.clone()));
        }
        self.current().attempts += 1;
        match self.make().await {
            Ok(found) => {
                *failure = None;
                Ok(found)
            }
            Err(error) => {
                *failure = Some(NoClient { reason: error.to_string(), is_permanent: error.is_permanent() });
                Err(error)
            }
        }
    }

    async fn make(&self) -> Result<(u64, Arc<Client>), Failure> {
        let builder = ClientBuilder::new(self.config.brokers.clone())
            .client_id(self.config.client_id.clone())
            .max_message_size(MAX_ANSWER_BYTES)
            .backoff_config(once());
        let client = match self.attempt(self.security.apply_to(builder).build()).await? {
            Ok(client) => Arc::new(client),
            Err(error) => return Err(self.explain(error).await),
        };
        let mut current = self.current();
        current.generation += 1;
        current.client = Some(client.clone());
        Ok((current.generation, client))
    }

    async fn explain(&self, error: Error) -> Failure {
        let dialer = Dialer::new(&self.config, self.security.clone());
        for broker in &self.config.brokers {
            let Ok(address) = Address::parse(broker) else { continue };
            // A broker that wants a login says so at the first question only.
            let ask = async {
                let mut connection = dialer.connect(&address).await?;
                let question = MetadataRequest::default().with_topics(Some(Vec::new()));
                connection.call(&question, self.config.request_timeout).await
            };
            if let Ok(Err(problem)) = timeout(self.patience(), ask).await {
                let is_permanent = problem.is_permanent();
                return Failure::NoClient(NoClient { reason: problem.to_string(), is_permanent });
            }
        }
        error.into()
    }

    fn present(&self) -> Option<(u64, Arc<Client>)> {
        let current = self.current();
        current.client.clone().map(|client| (current.generation, client))
    }

    /// What came of a call; a client that may be stuck is given up.
    fn settle<T>(&self, generation: u64, result: Result<Result<T, Error>, Elapsed>) -> Result<T, Failure> {
        let result = result.map_err(|_: Elapsed| Failure::Late).and_then(|result| result.map_err(Failure::from));
        if result.as_ref().is_err_and(|failure| failure.cause() == Cause::Broken) {
            self.discard_generation(generation);
        }
        result
    }

    fn discard_generation(&self, generation: u64) {
        let mut current = self.current();
        if current.generation == generation {
            current.client = None;
        }
    }

    /// Makes a connection, once.
    async fn attempt<T: Send + 'static>(
        &self,
        connecting: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Elapsed> {
        match self.security.slow_login() {
            Some(login) => login.in_turn(self.patience(), connecting).await,
            None => timeout(self.patience(), connecting).await,
        }
    }

    /// How long one attempt may take: of several addresses one may lead nowhere, and then there must be time for another.
    /// A login that takes long is not worth less patience than a connection of our own has.
    fn patience(&self) -> Duration {
        match self.security.slow_login() {
            Some(_) => self.config.connect_timeout,
            None => self.config.connect_timeout.min(self.config.produce_timeout / 3),
        }
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.current.lock().expect("nothing panics while it holds this lock")
    }
}

impl Leader {
    /// Appends the records as one batch, and answers the offset of the first.
    pub(super) async fn produce(&self, records: Vec<Record>, deadline: Instant) -> Result<u64, Failure> {
        let offsets = timeout_at(deadline, self.client.produce(records, Compression::NoCompression)).await??;
        Ok(offset(offsets.first().copied().unwrap_or_default()))
    }

    /// Records from an offset on, and the offset after the last one that is durable. Waits at most `wait` for a record.
    pub(super) async fn fetch(
        &self,
        offset: u64,
        max_bytes: usize,
        wait: Duration,
        deadline: Instant,
    ) -> Result<(Vec<RecordAndOffset>, u64), Failure> {
        let from = i64::try_from(offset).expect("Kafka counts records in 63 bits");
        let bytes = 1..i32::try_from(max_bytes).unwrap_or(i32::MAX).max(2);
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        let (records, end) = timeout_at(deadline, self.client.fetch_records(from, bytes, wait)).await??;
        Ok((records, self::offset(end)))
    }

    /// The offset of the oldest record that is still there.
    pub(super) async fn earliest(&self, deadline: Instant) -> Result<u64, Failure> {
        Ok(offset(timeout_at(deadline, self.client.get_offset(OffsetAt::Earliest)).await??))
    }

    /// The offset after the last record that a reader may see.
    pub(super) async fn latest(&self, deadline: Instant) -> Result<u64, Failure> {
        Ok(offset(timeout_at(deadline, self.client.get_offset(OffsetAt::Latest)).await??))
    }
}

/// Brokers answer -1 where there is nothing to say.
pub(super) fn offset(answered: i64) -> u64 {
    u64::try_from(answered).unwrap_or(0)
}

/// One attempt: its backoff is over before it begins.
fn once() -> BackoffConfig {
    let moment = Duration::from_millis(1);
    BackoffConfig { init_backoff: moment, max_backoff: moment, base: 3.0, deadline: Some(Duration::ZERO) }
}
