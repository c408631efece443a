//! Reading from a broker that tells what it is asked, and that does at one moment what a real one does seldom.

use std::sync::atomic::AtomicUsize;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::{
    messages::{
        ApiVersionsResponse, FetchResponse, MetadataResponse, RequestHeader,
        api_versions_response::ApiVersion,
        fetch_response::FetchableTopicResponse,
        metadata_response::{MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic},
    },
    protocol::{Decodable, Encodable},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

/// The key of what it is asked about topics.
const METADATA: i16 = 3;

/// What a broker sees of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It asks for what is there from an offset on.
    Asks(u64),
    /// A connection on which it has asked was closed.
    Leaves,
}

/// What a broker does when it is asked for records.
enum Does {
    /// Sends records, from the offset on that it was asked for.
    Sends(&'static [&'static str]),
    /// The same, and behind them a batch with a wrong checksum.
    SendsDamaged(&'static [&'static str]),
    HangsUp,
}

/// The broker that leads partition 0 of the topic `q`.
struct Broker {
    config: Arc<Config>,
    seen: mpsc::UnboundedReceiver<Seen>,
}

impl Broker {
    /// `script` says what it does when it is asked, and how often it was before.
    async fn start(script: impl Fn(usize) -> Does + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let (sees, seen) = mpsc::unbounded_channel();
        let script = Arc::new((script, AtomicUsize::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (sees, script) = (sees.clone(), script.clone());
                tokio::spawn(async move {
                    let next = || script.0(script.1.fetch_add(1, Ordering::Relaxed));
                    serve(stream, port, &sees, next).await;
                });
            }
        });
        let config = Config { brokers: vec![format!("127.0.0.1:{port}")], ..Config::default() };
        Self { config: Arc::new(config), seen }
    }

    fn reader(&self, from: u64) -> Fetcher {
        Fetcher::new(source(self.config.clone()), ("q".into(), 0), Some(from))
    }

    async fn sees(&mut self) -> Seen {
        timeout(PATIENCE, self.seen.recv()).await.expect("it is due").expect("the broker lives")
    }
}

async fn serve(mut stream: TcpStream, port: u16, sees: &mpsc::UnboundedSender<Seen>, next: impl Fn() -> Does) {
    let mut has_asked = false;
    while let Ok(length) = stream.read_u32().await {
        let mut frame = vec![0; usize::try_from(length).expect("it is short")];
        stream.read_exact(&mut frame).await.expect("frames are whole");
        let mut frame = Bytes::from(frame);
        let header = RequestHeader::decode(&mut frame, 1).expect("readers speak no newer header");
        let mut body = BytesMut::new();
        match header.request_api_key {
            18 => {
                // Any version of anything, but for metadata: those of before topics had ids.
                let newest = |key| if key == METADATA { 7 } else { 99 };
                let version = |key| ApiVersion::default().with_api_key(key).with_max_version(newest(key));
                let keys = (0..60).map(version);
                let answer = ApiVersionsResponse::default().with_api_keys(keys.collect());
                answer.encode(&mut body, 0).expect("it can be said");
            }
            METADATA => metadata(port).encode(&mut body, 7).expect("it can be said"),
            _ => {
                let question = FetchRequest::decode(&mut frame, 10).expect("it is one");
                let from = u64::try_from(question.topics[0].partitions[0].fetch_offset).expect("it is one");
                has_asked = true;
                let _ = sees.send(Seen::Asks(from));
                match next() {
                    Does::Sends(values) => answer(records(from, values)).encode(&mut body, 10).expect("it can be said"),
                    Does::SendsDamaged(values) => {
                        let mut sent = records(from, values);
                        let mut damaged = records(from + values.len() as u64, &["damaged"]);
                        *damaged.last_mut().expect("it has bytes") ^= 1;
                        sent.unsplit(damaged);
                        answer(sent).encode(&mut body, 10).expect("it can be said");
                    }
                    Does::HangsUp => break,
                }
            }
        }
        stream.write_u32(u32::try_from(body.len() + 4).expect("it is short")).await.expect("the reader listens");
        stream.write_i32(header.correlation_id).await.expect("the reader listens");
        stream.write_all(&body).await.expect("the reader listens");
    }
    if has_asked {
        let _ = sees.send(Seen::Leaves);
    }
}

fn metadata(port: u16) -> MetadataResponse {
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(1))
        .with_host(StrBytes::from_static_str("127.0.0.1"))
        .with_port(i32::from(port));
    let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1));
    let topic =
        MetadataResponseTopic::default().with_name(Some(topic_name(&"q".into()))).with_partitions(vec![partition]);
    MetadataResponse::default().with_brokers(vec![broker]).with_topics(vec![topic])
}

/// A batch; none where there are no records.
fn records(from: u64, values: &[&str]) -> BytesMut {
    let values: Vec<(&[u8], &[_])> = values.iter().map(|value| (value.as_bytes(), &[][..])).collect();
    let mut sent = BytesMut::new();
    if !values.is_empty() {
        sent.extend_from_slice(&batch(0, 0, &values));
        (&mut sent[..8]).put_u64(from);
    }
    sent
}

fn answer(records: BytesMut) -> FetchResponse {
    let partition = PartitionData::default().with_high_watermark(1000).with_records(Some(records.freeze()));
    let topic = FetchableTopicResponse::default().with_topic(topic_name(&"q".into())).with_partitions(vec![partition]);
    FetchResponse::default().with_responses(vec![topic])
}

#[tokio::test]
async fn nothing_is_asked_for_before_all_that_came_was_handed_out() {
    let mut broker = Broker::start(|_| Does::Sends(&["a", "b"])).await;
    let (mut reader, mut other) = (broker.reader(7), broker.reader(100));
    assert_eq!(reader.next(1).await.expect("they come")[0].offset, 7);
    assert_eq!(reader.next(ALL).await.expect("it is there")[0].offset, 8);
    assert_eq!(other.next(ALL).await.expect("they come").len(), 2);
    assert_eq!((broker.sees().await, broker.sees().await), (Seen::Asks(7), Seen::Asks(100)));
    assert_eq!(reader.next(ALL).await.expect("they come")[0].offset, 9);
    assert_eq!(broker.sees().await, Seen::Asks(9));
    drop(reader);
    assert_eq!(broker.sees().await, Seen::Leaves, "whose partition is lost reads nothing more of it");
}

#[tokio::test]
async fn connection_that_the_broker_has_closed_is_made_anew_unnoticed() {
    let mut broker = Broker::start(|before| match before {
        1 => Does::HangsUp,
        _ => Does::Sends(&["a"]),
    })
    .await;
    let mut reader = broker.reader(0);
    for offset in [0, 1] {
        assert_eq!(reader.next(ALL).await.expect("it comes")[0].offset, offset);
    }
    let seen = [broker.sees().await, broker.sees().await, broker.sees().await, broker.sees().await];
    assert_eq!(seen, [Seen::Asks(0), Seen::Asks(1), Seen::Leaves, Seen::Asks(1)]);
}

#[tokio::test]
async fn batch_that_cannot_be_read_is_asked_for_once_more() {
    let mut broker = Broker::start(|before| match before {
        0 => Does::SendsDamaged(&["a", "b"]),
        1 | 2 => Does::SendsDamaged(&[]),
        _ => Does::Sends(&["c"]),
    })
    .await;
    let mut reader = broker.reader(0);
    let offsets = async |reader: &mut Fetcher| {
        reader.next(ALL).await.expect("they come").iter().map(|entry| entry.offset).collect::<Vec<_>>()
    };
    assert_eq!(offsets(&mut reader).await, [0, 1], "what stands before it");
    assert_eq!(reader.source.unreadable.load(Ordering::Relaxed), 0);
    // It comes again as it was.
    assert_eq!(offsets(&mut reader).await, [2]);
    assert_eq!(reader.source.unreadable.load(Ordering::Relaxed), 1);
    // The next one is whole when it comes again.
    assert_eq!(offsets(&mut reader).await, [3]);
    assert_eq!(reader.source.unreadable.load(Ordering::Relaxed), 1);
    let mut asked = Vec::new();
    while asked.len() < 4 {
        if let Seen::Asks(from) = broker.sees().await {
            asked.push(from);
        }
    }
    assert_eq!(asked, [0, 2, 3, 3]);
}

#[tokio::test]
async fn partition_that_brings_little_is_asked_seldom_and_one_that_brings_much_at_once() {
    let much: &'static str = "v".repeat(LITTLE).leak();
    let broker = Broker::start(move |before| match before {
        9 => Does::Sends(vec![much].leak()),
        _ => Does::Sends(&["a"]),
    })
    .await;
    let mut reader = broker.reader(0);
    let begun = Instant::now();
    for _ in 0..10 {
        reader.next(ALL).await.expect("they come");
    }
    assert!(begun.elapsed() >= 9 * PACE, "{:?}", begun.elapsed());
    assert_eq!(reader.cursor.rest_until, None);
    reader.next(ALL).await.expect("it comes");
    assert!(reader.cursor.rest_until.is_some());
}
