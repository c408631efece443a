//! Logins, and what they leave of a thread.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Instant,
};

use futures_util::future::join_all;
use tokio::task::yield_now;

use super::*;
use crate::log::kafka::{
    config::{Config, Sasl},
    connector::Connector,
    security::Security,
    testing::{
        guarded::{self, Certificates, Guarded},
        unique,
    },
};

const PARTITIONS: u32 = 16;
const PATIENCE: Duration = Duration::from_secs(30);

fn login(mechanism: Mechanism) -> Login {
    Login::new(mechanism, "admin".to_owned(), "admin-secret".to_owned())
}

/// Goes through a login up to its proof, with a broker that has this salt.
async fn prove(login: &Login, salt: &str) {
    let exchange = login.begin().expect("it can be begun");
    let (exchange, said) = exchange.step(None).await.expect("it says who it is");
    let said = String::from_utf8(said.words.expect("it says something").into()).expect("it is text");
    let (_, nonce) = said.split_once(",r=").expect("it has a nonce");
    let heard = format!("r={nonce}more,s={salt},i=4096");
    exchange.step(Some(heard.into())).await.expect("it proves that it knows the password");
}

#[tokio::test]
async fn password_is_hashed_once_for_each_salt() {
    for mechanism in [Mechanism::ScramSha256, Mechanism::ScramSha512] {
        let login = login(mechanism);
        let hash = || login.salted.lock().expect("nothing panics while it holds it").hash.clone();
        prove(&login, "c2FsdA==").await;
        let first = hash();
        // One that would come to another hash.
        let other = Login { password: "other-secret".to_owned(), ..login.clone() };
        prove(&other, "c2FsdA==").await;
        assert!(hash() == first, "{mechanism:?} has hashed again");
        prove(&other, "b3RoZXI=").await;
        assert!(hash() != first, "{mechanism:?} has taken one salt for another");
    }
}

#[tokio::test]
async fn library_logs_in_once_at_a_time_and_holds_nobody_up() {
    let login = login(Mechanism::ScramSha512);
    let [turns, at_once] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
    let connect = |_| {
        let (turns, at_once) = (turns.clone(), at_once.clone());
        login.in_turn(PATIENCE, async move {
            let others = at_once.fetch_add(1, Ordering::SeqCst);
            // As one that hashes it waits for nothing: only somebody else can make turns.
            let (began, before) = (Instant::now(), turns.load(Ordering::SeqCst));
            while turns.load(Ordering::SeqCst) < before + 10 && began.elapsed() < PATIENCE / 10 {
                std::thread::yield_now();
            }
            let made = turns.load(Ordering::SeqCst) - before;
            at_once.fetch_sub(1, Ordering::SeqCst);
            (others, made)
        })
    };
    let turning = async {
        loop {
            turns.fetch_add(1, Ordering::SeqCst);
            yield_now().await;
        }
    };
    let seen = tokio::select! {
        seen = join_all((0..3).map(connect)) => seen,
        () = turning => panic!("it turns for ever"),
    };
    for (others, made) in seen.into_iter().map(|seen| seen.expect("it is in time")) {
        assert!(others == 0 && made >= 10, "{others} others logged in, and {made} turns were made meanwhile");
    }
}

#[tokio::test]
async fn many_partitions_are_reached_though_each_login_takes_long() {
    let certificates = Certificates::make();
    let (kafka, Guarded { sasl, .. }) = guarded::start(&certificates);
    let topic = unique("many");
    kafka.create_topic(&topic, PARTITIONS as u16, &[]);
    let config = Config { brokers: vec![sasl], connect_timeout: Duration::from_secs(2), ..Config::default() };
    let password_file = certificates.secret("admin-secret");
    let sasl = Sasl { mechanism: Mechanism::ScramSha512, username: "admin".into(), password_file };
    let security = Security::load(None, Some(&sasl)).expect("the password is there");
    let connector = Connector::new(Arc::new(config), security);
    // Where nothing is optimised, a few of these logins together take longer than a connection may.
    let leaders = join_all((0..PARTITIONS).map(|partition| connector.leader(&topic, partition))).await;
    let failures: Vec<String> =
        leaders.into_iter().filter_map(Result::err).map(|failure| failure.to_string()).collect();
    assert!(failures.is_empty(), "{failures:?}");
}
