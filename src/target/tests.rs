use super::{testing::RedisServer, *};
use crate::retry::FailureClass;

fn target(server: &RedisServer) -> Target {
    Target::try_new("test", Config::new(server.url())).expect("the URL is fine")
}

fn set(batch: &mut Batch, key: &str, value: &str) {
    batch.push_command("SET", [key.as_bytes(), value.as_bytes()].into_iter());
}

#[tokio::test]
async fn batch_gives_one_result_per_unit() {
    let server = RedisServer::start(&[]);
    let mut connection = target(&server).connect().await.expect("the server is up");
    let mut batch = Batch::new();
    set(&mut batch, "a", "1");
    batch.push_command("LPUSH", [b"a".as_slice(), b"x"].into_iter());
    set(&mut batch, "b", "2");
    let outcome = connection.execute(batch).await;
    assert!(outcome.reusable);
    assert_eq!(outcome.results[0], Ok(()));
    let failure = outcome.results[1].as_ref().expect_err("a string is no list");
    assert_eq!((failure.class, &*failure.code), (FailureClass::Dead, "WRONGTYPE"));
    assert_eq!(outcome.results[2], Ok(()));
    assert_eq!(server.cli(&["GET", "b"]).text(), "2");
}
