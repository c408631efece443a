//! Connections to a real broker that wants this or that, and to brokers that misbehave.

use kafka_protocol::messages::api_versions_response::ApiVersion;
use tokio::net::TcpListener;

use super::*;
use crate::log::kafka::{
    config::{Mechanism, Sasl, Tls},
    testing::guarded::{self, Certificates, Guarded},
};

const PATIENCE: Duration = Duration::from_secs(30);

fn dialer(security: Security, connect_timeout: Duration) -> Dialer {
    Dialer::new(&Config { connect_timeout, ..Config::default() }, security)
}

/// Connects, and asks what every broker answers.
async fn try_out(security: Security, address: &str) -> Result<usize, WireError> {
    let address = Address::parse(address)?;
    let mut connection = dialer(security, PATIENCE).connect(&address).await?;
    let answer = connection.call(&MetadataRequest::default().with_topics(Some(Vec::new())), PATIENCE).await?;
    Ok(answer.brokers.len())
}

fn tls(certificates: &Certificates) -> Tls {
    Tls { ca_file: Some(certificates.file("ca.pem")), ..Tls::default() }
}

fn sasl_as_admin(certificates: &Certificates, mechanism: Mechanism, password: &str) -> Sasl {
    Sasl { mechanism, username: "admin".into(), password_file: certificates.secret(password) }
}

#[tokio::test]
async fn guarded_broker_is_reached_and_what_is_wrong_is_said() {
    let certificates = Certificates::make();
    let (kafka, Guarded { sasl, tls, mutual, both }) = guarded::start(&certificates);
    let load = |tls: Option<Tls>, sasl: Option<Sasl>| {
        Security::load(tls.as_ref(), sasl.as_ref()).expect("the files are there")
    };
    let over_tls = || self::tls(&certificates);
    let login = |mechanism| Some(sasl_as_admin(&certificates, mechanism, "admin-secret"));

    for mechanism in Mechanism::ALL {
        assert_eq!(try_out(load(None, login(mechanism)), &sasl).await, Ok(1), "{mechanism:?}");
        assert_eq!(try_out(load(Some(over_tls()), login(mechanism)), &both).await, Ok(1), "{mechanism:?}");
    }
    assert_eq!(try_out(load(Some(over_tls()), None), &tls).await, Ok(1));
    let localhost = tls.replace("127.0.0.1", "localhost");
    assert_eq!(try_out(load(Some(over_tls()), None), &localhost).await, Ok(1));
    let known = Tls {
        cert_file: Some(certificates.file("client.crt")),
        key_file: Some(certificates.file("client.key")),
        ..over_tls()
    };
    assert_eq!(try_out(load(Some(known), None), &mutual).await, Ok(1));

    let refused = async |security: Security, address: &str, expected: &str| {
        let error = try_out(security, address).await.expect_err(expected);
        assert!(error.is_permanent(), "{error}");
        let error = error.to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        assert!(!error.contains("secret"), "{error}");
    };
    for mechanism in Mechanism::ALL {
        let wrong = sasl_as_admin(&certificates, mechanism, "wrong-secret");
        refused(load(None, Some(wrong)), &sasl, "refused the login").await;
    }
    let other = Tls { ca_file: Some(certificates.file("other.pem")), ..Tls::default() };
    refused(load(Some(other), None), &tls, "UnknownIssuer").await;
    refused(load(None, None), &tls, "wants TLS").await;
    refused(load(Some(over_tls()), None), &kafka.address(), "does this port speak TLS?").await;
    refused(load(None, login(Mechanism::Plain)), &kafka.address(), "refused the login").await;
    refused(load(Some(over_tls()), None), &mutual, "Certificate").await;
    // This may be something else, and is tried again.
    let error = try_out(load(None, None), &sasl).await.expect_err("it wants a login");
    assert_eq!(error, WireError::WantsSasl { broker: sasl });
}

/// A broker that answers each connection's bytes as a test says; `None` closes.
pub(in crate::log::kafka) async fn scripted(answer: impl Fn(i16, i32) -> Option<Bytes> + Send + 'static) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            while let Ok(length) = stream.read_u32().await {
                let mut frame = vec![0; usize::try_from(length).expect("it is short")];
                stream.read_exact(&mut frame).await.expect("the client sends whole frames");
                let mut frame = &frame[..];
                let (key, _version, id) = (frame.get_i16(), frame.get_i16(), frame.get_i32());
                let Some(bytes) = answer(key, id) else { break };
                stream.write_all(&bytes).await.expect("the client listens");
            }
        }
    });
    Address { host: "127.0.0.1".into(), port }
}

pub(in crate::log::kafka) fn framed(id: i32, body: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u32(u32::try_from(body.len() + 4).expect("it is short"));
    frame.put_i32(id);
    frame.put_slice(body);
    frame.freeze()
}

fn versions(id: i32, changed: impl Fn(&'static str, i16) -> Option<(i16, i16)>) -> Bytes {
    let keys = CALLS.iter().filter_map(|&(name, key, version)| {
        let (min, max) = changed(name, version)?;
        Some(ApiVersion::default().with_api_key(key).with_min_version(min).with_max_version(max))
    });
    let mut body = BytesMut::new();
    ApiVersionsResponse::default().with_api_keys(keys.collect()).encode(&mut body, 0).expect("it can be said");
    framed(id, &body)
}

pub(in crate::log::kafka) fn all_versions(id: i32) -> Bytes {
    versions(id, |_, version| Some((version, version)))
}

#[tokio::test]
async fn broker_is_not_asked_what_it_does_not_know() {
    let address = scripted(|_, id| {
        Some(versions(id, |name, version| (name != "DescribeConfigsRequest").then_some((version, version))))
    });
    let mut connection = dialer(Security::default(), PATIENCE).connect(&address.await).await.expect("it greets");
    for _ in 0..2 {
        let error = connection.call(&DescribeConfigsRequest::default(), PATIENCE).await.expect_err("it is not asked");
        assert!(error.is_permanent());
        assert!(error.to_string().ends_with("does not know DescribeConfigsRequest"), "{error}");
    }
}

#[tokio::test]
async fn broker_that_is_too_old_or_too_new_is_named() {
    let check = async |changed: (i16, i16), expected: &str| {
        let address = scripted(move |_, id| {
            let said = |name, version| if name == "JoinGroupRequest" { changed } else { (version, version) };
            Some(versions(id, |name, version| Some(said(name, version))))
        });
        let connected = dialer(Security::default(), PATIENCE).connect(&address.await).await;
        let error = connected.map(|_| ()).expect_err(expected);
        assert!(error.is_permanent());
        assert!(error.to_string().contains(expected), "{error}");
    };
    check((0, 4), "knows versions 0 to 4 of JoinGroupRequest, not 5").await;
    check((6, 9), "knows versions 6 to 9 of JoinGroupRequest, not 5").await;
}

#[tokio::test]
async fn silent_broker_is_waited_for_no_longer_than_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("some port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let address = Address { host: "127.0.0.1".into(), port };
    let connected = dialer(Security::default(), Duration::from_millis(50)).connect(&address).await;
    assert!(matches!(connected, Err(WireError::Timeout { .. })));

    let address = scripted(|key, id| Some(if key == 18 { all_versions(id) } else { Bytes::new() })).await;
    let mut connection = dialer(Security::default(), PATIENCE).connect(&address).await.expect("it greets");
    let within = Duration::from_millis(50);
    let answer = connection.call(&MetadataRequest::default(), within).await;
    assert!(matches!(answer, Err(WireError::Timeout { call: "MetadataRequest", .. })));
    let again = connection.call(&MetadataRequest::default(), within).await;
    assert!(matches!(again, Err(WireError::Closed { .. })), "an answer may come late, and be taken for this one's");
}

#[tokio::test]
async fn call_that_was_dropped_ends_its_connection() {
    let address = scripted(|key, id| Some(if key == 18 { all_versions(id) } else { Bytes::new() })).await;
    let mut connection = dialer(Security::default(), PATIENCE).connect(&address).await.expect("it greets");
    let request = MetadataRequest::default();
    let dropped = timeout(Duration::from_millis(50), connection.call(&request, PATIENCE)).await;
    assert!(dropped.is_err(), "nobody answers it");
    let again = connection.call(&request, PATIENCE).await;
    assert!(matches!(again, Err(WireError::Closed { .. })));
}

#[tokio::test]
async fn bytes_that_are_no_answer_are_refused() {
    let check = async |bytes: fn(i32) -> Option<Bytes>, expected: &str| {
        let address = scripted(move |key, id| if key == 18 { Some(all_versions(id)) } else { bytes(id) }).await;
        let mut connection = dialer(Security::default(), PATIENCE).connect(&address).await.expect("it greets");
        let error = connection.call(&HeartbeatRequest::default(), PATIENCE).await.expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(|id| Some(framed(id + 1, &[0; 6])), "answers another question").await;
    check(|id| Some(framed(id, &[0; 7])), "1 bytes too many").await;
    check(|id| Some(framed(id, &[0; 5])), "no answer to HeartbeatRequest").await;
    check(|_| Some(Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff])), "which is not read").await;
    check(|_| Some(Bytes::from_static(&[0xff, 0xff, 0xff, 0xff])), "which is not read").await;
    check(|_| None, "may want a login").await;
}

#[tokio::test]
async fn broker_that_would_keep_this_thread_busy_is_refused() {
    let address = scripted(|key, id| {
        let mut body = BytesMut::new();
        match key {
            18 => return Some(all_versions(id)),
            17 => {
                body.put_i16(0);
                body.put_i32(0);
            }
            _ => {
                body.put_i16(0);
                body.put_i16(-1);
                let first = b"r=nonce,s=c2FsdA==,i=4294967295";
                body.put_i32(i32::try_from(first.len()).expect("it is short"));
                body.put_slice(first);
                body.put_i64(0);
            }
        }
        Some(framed(id, &body))
    });
    let dir = tempfile::tempdir().expect("a directory can be made");
    let password_file = dir.path().join("password");
    std::fs::write(&password_file, "secret").expect("the directory is ours");
    let sasl = Sasl { mechanism: Mechanism::ScramSha256, username: "admin".into(), password_file };
    let security = Security::load(None, Some(&sasl)).expect("the file is there");
    let connected = dialer(security, PATIENCE).connect(&address.await).await;
    let error = connected.map(|_| ()).expect_err("it takes minutes").to_string();
    assert!(error.contains("more hashing"), "{error}");
}

#[test]
fn addresses_are_hosts_and_ports() {
    let check = |text: &str, host: &str, port| {
        let address = Address::parse(text).expect(text);
        assert_eq!(address, Address { host: host.into(), port });
        assert_eq!(address.to_string(), text);
    };
    check("kafka:9092", "kafka", 9092);
    check("[::1]:9092", "::1", 9092);
    for wrong in ["", "kafka", "kafka:", ":9092", "kafka:x", "kafka:99999"] {
        assert!(Address::parse(wrong).is_err(), "{wrong}");
    }
}
