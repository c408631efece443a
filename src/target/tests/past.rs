//! Connections that must not write any more.

use super::*;

/// A target that is reached through a link, and gives up on an answer soon.
fn target_over(link: &Link, boot_id: [u8; 16]) -> Target {
    let mut config = Config::new(format!("redis://127.0.0.1:{}", link.port()));
    config.response_timeout = Duration::from_millis(100);
    config.boot_id = boot_id;
    Target::try_new("test", config).expect("the URL is fine")
}

fn target_named(server: &RedisServer, boot_id: [u8; 16]) -> Target {
    let mut config = Config::new(server.url());
    config.boot_id = boot_id;
    Target::try_new("test", config).expect("the URL is fine")
}

/// A write whose answer did not come, and the connection on which it is under way.
async fn send_into_nothing(link: &Link, target: &Target) -> ConnectionName {
    let mut connection = target.connect().await.expect("the server is up");
    link.cut();
    let mut batch = new_batch();
    push(&mut batch, &["SET", "k", "stale"]);
    let outcome = connection.execute(batch).await;
    assert_eq!(says(&outcome.results[0]).0, FailureClass::Ambiguous);
    assert_eq!(outcome.spoilt, Some(connection.name()));
    connection.name()
}

/// Has what is under way arrive, and waits until the server has seen the last of it.
async fn arrive(server: &RedisServer, link: &Link, name: ConnectionName) {
    link.mend();
    server.wait_until(&["CLIENT", "LIST"], |reply| !reply.text().contains(&name.to_string()));
}

#[tokio::test]
async fn late_write_does_not_arrive_over_a_fenced_connection_and_does_over_another() {
    let server = RedisServer::start(&[]);
    for fenced in [true, false] {
        let (lost, direct) = (Link::to(&server), target(&server));
        let name = send_into_nothing(&lost, &target_over(&lost, [1; 16])).await;
        if fenced {
            let report = direct.fence(&[Past::Connection(name)]).await.expect("the server is up");
            assert_eq!(report, FenceReport { killed: 1, not_permitted: None });
        }
        let mut connection = direct.connect().await.expect("the server is up");
        assert_eq!(run(&mut connection, &["SET", "k", "fresh"]).await, DONE);
        arrive(&server, &lost, name).await;
        assert_eq!(server.cli(&["GET", "k"]).text(), if fenced { "fresh" } else { "stale" });
    }
}

#[tokio::test]
async fn all_connections_of_a_process_end_and_those_of_others_do_not() {
    let server = RedisServer::start(&[]);
    let (gone, other) = (target_named(&server, [1; 16]), target_named(&server, [2; 16]));
    let mut held = [gone.connect().await.expect("the server is up"), gone.connect().await.expect("the server is up")];
    gone.probe().await.expect("the server is up");
    let mut others = other.connect().await.expect("the server is up");
    let report = other.fence(&[Past::Process([1; 16]), Past::Process([3; 16])]).await.expect("the server is up");
    assert_eq!(report, FenceReport { killed: 3, not_permitted: None });
    for connection in &mut held {
        assert_eq!(says(&run(connection, &["SET", "k", "1"]).await).0, FailureClass::Ambiguous);
    }
    assert_eq!(run(&mut others, &["SET", "k", "2"]).await, DONE);
    let again = other.fence(&[Past::Process([1; 16])]).await.expect("the server is up");
    assert_eq!(again.killed, 0);
}

#[tokio::test]
async fn process_that_fences_itself_spares_the_connection_that_it_asks_over() {
    let server = RedisServer::start(&[]);
    let target = target_named(&server, [1; 16]);
    let mut held = target.connect().await.expect("the server is up");
    for _ in 0..2 {
        target.fence(&[Past::Process([1; 16])]).await.expect("the server is up");
    }
    assert_eq!(says(&run(&mut held, &["SET", "k", "1"]).await).0, FailureClass::Ambiguous);
    assert_eq!(server.cli(&["CLIENT", "LIST"]).text().matches("name=redrive-").count(), 1);
}

#[tokio::test]
async fn id_that_is_another_ones_after_a_restart_is_not_killed() {
    let mut server = RedisServer::start(&[]);
    let client = |list: &str, name: &str| {
        let line = list.lines().find(|line| line.contains(name)).expect("it is listed").to_owned();
        let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name).map(str::to_owned));
        (field("id=").expect("it has an id"), field("addr=").expect("it has an address"))
    };
    // Many before it, so that its id is not passed over after the restart.
    for _ in 0..20 {
        server.cli(&["PING"]);
    }
    let gone = target_named(&server, [1; 16]).connect().await.expect("the server is up");
    let (id, address) = client(&server.cli(&["CLIENT", "LIST"]).text(), &gone.name().to_string());
    server.restart();
    // Somebody else gets the id.
    let mut bystander = loop {
        let connection = target_named(&server, [2; 16]).connect().await.expect("the server is up");
        let (now, _) = client(&server.cli(&["CLIENT", "LIST"]).text(), &connection.name().to_string());
        if now == id {
            break connection;
        }
        assert!(now.parse::<u64>().expect("a number") < id.parse().expect("a number"), "the id was passed over");
    };
    assert_eq!(server.cli(&["CLIENT", "KILL", "ID", &id, "ADDR", &address]), Reply::Integer(0));
    let report = target_named(&server, [3; 16]).fence(&[Past::Connection(gone.name())]).await;
    assert_eq!(report.expect("the server is up").killed, 0);
    assert_eq!(run(&mut bystander, &["SET", "k", "1"]).await, DONE);
}

#[tokio::test]
async fn user_who_may_not_kill_is_told_so() {
    let server = RedisServer::start(&[]);
    for denied in ["-client|kill", "-client|list"] {
        server.cli(&["ACL", "DELUSER", "gw"]);
        server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all", denied]);
        let target = target_at(&format!("redis://gw:pw@127.0.0.1:{}", server.port()));
        let past = target_named(&server, [1; 16]).connect().await.expect("the server is up");
        let report = target.fence(&[Past::Connection(past.name())]).await.expect("the server is up");
        assert_eq!(report.killed, 0);
        assert_eq!(report.not_permitted.expect("it is not permitted").reason, ReasonClass::NoPermission);
    }
}

#[tokio::test]
async fn user_who_may_not_name_connections_can_use_the_target() {
    let server = RedisServer::start(&[]);
    server.cli(&["ACL", "SETUSER", "gw", "on", ">pw", "~*", "+@all", "-client|setname"]);
    let target = target_at(&format!("redis://gw:pw@127.0.0.1:{}", server.port()));
    let mut connection = target.connect().await.expect("the server is up");
    assert_eq!(run(&mut connection, &["SET", "k", "1"]).await, DONE);
    target.probe().await.expect("the server is well");
    assert_eq!(target.fence(&[Past::Connection(connection.name())]).await.expect("it answers").killed, 0);
}

#[tokio::test]
async fn fence_of_a_target_that_is_away_is_a_hold() {
    let mut server = RedisServer::start(&[]);
    let target = target(&server);
    let name = target.connect().await.expect("the server is up").name();
    target.probe().await.expect("the server is up");
    server.kill9();
    let failure = target.fence(&[Past::Connection(name)]).await.expect_err("it is away");
    assert_eq!((failure.class, &*failure.code), (FailureClass::Hold, "connection-refused"));
}

#[tokio::test]
async fn names_of_connections_differ() {
    let server = RedisServer::start(&[]);
    let (one, other) = (target_named(&server, [1; 16]), target_named(&server, [1; 16]));
    let mut connections = Vec::new();
    for target in [&one, &other, &one, &other] {
        connections.push(target.connect().await.expect("the server is up"));
    }
    let names: std::collections::HashSet<_> = connections.iter().map(Connection::name).collect();
    assert_eq!(names.len(), 4);
    let list = server.cli(&["CLIENT", "LIST"]).text();
    assert!(names.iter().all(|name| list.contains(&format!(" name={name} "))), "{list}");
}
