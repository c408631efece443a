//! Holds the table against real servers: of the version that it is made for, and for newer commands of one that has
//! them.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
};

use fastrand::Rng;

use super::{
    generate::{Generator, KEYS, NEWER_POPULATION, NEWER_TEMPLATES, POPULATION, TEMPLATES},
    server::{Reply, Server},
};
use crate::commands::{
    ArgumentFault, Class, Expiry, NotAccepted, Overwrite, TtlAt, TtlEffect, lookup, refused, table::ACCEPTED,
};

/// How often arguments are made for each command.
const ROUNDS: usize = 60;

/// Flagged as writes with keys, and refused all the same.
const REFUSED_WRITES: [(&str, NotAccepted); 2] =
    [("MIGRATE", NotAccepted::Admin), ("RESTORE-ASKING", NotAccepted::Admin)];

/// What the policy excludes by flag, and the reason that names it.
const EXCLUDED: [(&str, NotAccepted); 4] = [
    ("admin", NotAccepted::Admin),
    ("pubsub", NotAccepted::PubSub),
    ("blocking", NotAccepted::Blocking),
    ("readonly", NotAccepted::ReadOnly),
];

/// A row of the server's COMMAND.
struct ServerCommand {
    name: String,
    arity: i64,
    flags: Vec<String>,
    has_keys: bool,
    subcommands: Vec<ServerCommand>,
}

impl ServerCommand {
    fn new(reply: &Reply) -> Self {
        let fields = reply.list();
        Self {
            name: fields[0].text().to_ascii_uppercase(),
            arity: fields[1].int(),
            flags: fields[2].list().iter().map(|flag| flag.text().to_owned()).collect(),
            has_keys: !fields[8].list().is_empty(),
            subcommands: fields[9].list().iter().map(Self::new).collect(),
        }
    }

    fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|found| found == flag)
    }

    fn is_accepted(&self) -> bool {
        let excluded = EXCLUDED.iter().any(|(flag, _)| self.has(flag));
        self.has("write") && self.has_keys && !excluded && REFUSED_WRITES.iter().all(|(name, _)| *name != self.name)
    }
}

fn server_commands(server: &mut Server) -> Vec<ServerCommand> {
    server.say("COMMAND").list().iter().map(ServerCommand::new).collect()
}

fn borrowed(args: &[Vec<u8>]) -> Vec<Cow<'_, [u8]>> {
    args.iter().map(|arg| Cow::Borrowed(arg.as_slice())).collect()
}

#[test]
fn every_command_of_the_server_is_accepted_or_refused_for_a_reason() {
    let mut server = Server::start();
    let commands = server_commands(&mut server);
    for command in &commands {
        let name = &command.name;
        let accepted = command.is_accepted() || command.subcommands.iter().any(ServerCommand::is_accepted);
        match lookup(name.as_bytes()) {
            Ok(spec) => {
                assert!(accepted, "{name} is accepted against the policy");
                assert_eq!(i64::from(spec.arity), command.arity, "{name}");
            }
            Err(reason) => {
                assert!(!accepted, "{name} is refused against the policy");
                assert_ne!(reason, NotAccepted::Unknown, "{name}");
                check_reason(command, reason);
            }
        }
    }
    let known = |name: &str| commands.iter().any(|command| command.name == name);
    let newer: BTreeSet<_> = newer_names().collect();
    for name in ACCEPTED.iter().map(|spec| spec.name).chain(refused::names()) {
        assert_ne!(known(name), newer.contains(name), "{name} is newer than the server, or is not");
    }
}

/// The commands that came after the version that the table is made for.
fn newer_names() -> impl Iterator<Item = &'static str> {
    let names = NEWER_TEMPLATES.iter().map(|(name, _)| *name);
    names.filter(|name| TEMPLATES.iter().all(|(known, _)| known != name))
}

#[test]
fn newer_commands_are_what_a_newer_server_takes_them_for() {
    let mut server = Server::start_newer();
    let commands = server_commands(&mut server);
    for name in newer_names() {
        let command = commands.iter().find(|command| command.name == name).expect("the server knows it");
        assert!(command.is_accepted(), "{name}");
        check_arity(name, None, command.arity);
        // Servers of other makes may take less when they are full.
        assert!(lookup(name.as_bytes()).expect("accepted").needs_memory || !needs_memory(command), "{name}");
    }
}

#[test]
fn what_a_full_server_takes_is_known() {
    let mut server = Server::start();
    for command in server_commands(&mut server).iter().filter(|command| lookup(command.name.as_bytes()).is_ok()) {
        let spec = lookup(command.name.as_bytes()).expect("accepted");
        assert_eq!(spec.needs_memory, needs_memory(command), "{}", command.name);
    }
}

/// Where only some subcommands do, all count as if.
fn needs_memory(command: &ServerCommand) -> bool {
    command.has("denyoom") || command.subcommands.iter().any(|subcommand| subcommand.has("denyoom"))
}

fn check_reason(command: &ServerCommand, reason: NotAccepted) {
    let name = command.name.as_str();
    if let Some((_, expected)) = REFUSED_WRITES.iter().find(|(refused, _)| *refused == name) {
        assert_eq!(reason, *expected, "{name}");
    } else if name == "XREAD" {
        assert_eq!(reason, NotAccepted::Blocking, "a read too, but blocking says more");
    } else if command.has("readonly") && command.has("movablekeys") && command.has("noscript") {
        assert_eq!(reason, NotAccepted::Script, "{name} reads by a script");
    } else if let Some((_, expected)) = EXCLUDED.iter().find(|(flag, _)| command.has(flag)) {
        assert_eq!(reason, *expected, "{name}");
    } else if command.has("write") {
        assert_eq!(reason, NotAccepted::Keyless, "{name}");
    }
    // A container that is refused has nothing in it that should not be.
    for subcommand in &command.subcommands {
        assert!(!subcommand.is_accepted(), "{} is refused against the policy", subcommand.name);
    }
}

#[test]
fn counts_of_arguments_are_judged_as_the_server_does() {
    let mut server = Server::start();
    for command in server_commands(&mut server).iter().filter(|command| lookup(command.name.as_bytes()).is_ok()) {
        if command.subcommands.is_empty() {
            check_arity(&command.name, None, command.arity);
        }
        for subcommand in &command.subcommands {
            let (name, word) = subcommand.name.split_once('|').expect("CONTAINER|WORD");
            if subcommand.is_accepted() {
                check_arity(name, Some(word), subcommand.arity);
            } else {
                assert_eq!(subcommand.name, "XGROUP|HELP");
            }
        }
    }
}

fn check_arity(name: &str, word: Option<&str>, arity: i64) {
    let spec = lookup(name.as_bytes()).expect("accepted");
    let fixed = if word.is_some() { 2 } else { 1 };
    for given in fixed..12 {
        let mut args: Vec<Cow<'_, [u8]>> = word.iter().map(|word| Cow::Borrowed(word.as_bytes())).collect();
        args.resize(usize::try_from(given - 1).expect("small"), Cow::Borrowed(b"1"));
        let is_fault = matches!(spec.effects(&args), Err(ArgumentFault::Count { .. }));
        let expected = if arity < 0 { given < -arity } else { given != arity };
        assert_eq!(is_fault, expected, "{name} {word:?} with {given}");
    }
}

fn generator(server: &mut Server) -> Generator {
    server.say("SET dumped 1");
    Generator { rng: Rng::with_seed(0x5eed), dump: server.say("DUMP dumped").bytes().to_vec() }
}

/// Calls `check` with arguments for every accepted command, on a server that knows it.
fn for_each_command(mut check: impl FnMut(&mut Server, &str, &[Vec<u8>])) {
    let mut counts: BTreeMap<&str, usize> = ACCEPTED.iter().map(|spec| (spec.name, 0)).collect();
    for (mut server, templates) in [(Server::start(), TEMPLATES), (Server::start_newer(), NEWER_TEMPLATES)] {
        let mut generator = generator(&mut server);
        for (name, template) in templates {
            for _ in 0..ROUNDS {
                check(&mut server, name, &generator.arguments(template));
                *counts.get_mut(name).expect("an accepted command") += 1;
            }
        }
    }
    let _ = writeln!(std::io::stdout(), "{counts:?}");
    assert!(counts.values().all(|count| *count >= 50), "a command was never tried: {counts:?}");
}

#[test]
fn keys_and_written_flags_are_those_of_the_server() {
    let mut misread = 0;
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args));
        let effects = effects.unwrap_or_else(|fault| panic!("{name} {}: {fault:?}", shown(args)));
        let ours: Vec<_> = effects.keys.map(|key| (args[key.index].clone(), key.written)).collect();
        assert_eq!(effects.keys.len(), ours.len());
        let mut question = vec![b"COMMAND".to_vec(), b"GETKEYSANDFLAGS".to_vec(), name.as_bytes().to_vec()];
        question.extend_from_slice(args);
        let answer = server.call(&question);
        if name == "PFMERGE" && args.len() == 1 {
            // A destination alone is executed, but the server's own key specification wants a source.
            assert!(answer.is_error());
            assert_eq!(ours, [(args[0].clone(), true)]);
            return;
        }
        assert!(!answer.is_error(), "{name} {}: {answer:?}", shown(args));
        let theirs: Vec<_> = answer.list().iter().map(key_and_written).collect();
        if is_named_like_an_option(name, &ours) {
            misread += usize::from(ours != theirs);
        } else {
            assert_eq!(ours, theirs, "{name} {}", shown(args));
        }
    });
    assert!(misread > 0, "the server reads these rightly by now; the exception can go");
}

/// The server's rules look for the words STORE and STOREDIST wherever they are, so that they take a destination of
/// that name for an option and what follows for a key. The commands themselves do not: the next test.
fn is_named_like_an_option(name: &str, keys: &[(Vec<u8>, bool)]) -> bool {
    let like = |key: &[u8]| key.eq_ignore_ascii_case(b"STORE") || key.eq_ignore_ascii_case(b"STOREDIST");
    let last = keys.last();
    ["SORT", "GEORADIUS", "GEORADIUSBYMEMBER"].contains(&name) && last.is_some_and(|(key, _)| like(key))
}

#[test]
fn a_destination_named_like_an_option_is_the_key_that_is_written() {
    let mut server = Server::start();
    for line in ["SORT l1 STORE STORE DESC", "GEORADIUS g0 10 20 900 km STORE STORE ASC"] {
        populate(&mut server);
        server.say("DEL STORE");
        assert!(server.say(line).int() > 0, "{line}");
        assert_eq!(server.say("EXISTS STORE"), Reply::Int(1), "{line}");
        assert_eq!(server.say("EXISTS DESC ASC"), Reply::Int(0), "{line}");
    }
}

fn key_and_written(reply: &Reply) -> (Vec<u8>, bool) {
    let [key, flags] = reply.list() else { panic!("a key and its flags") };
    let written = flags.list().iter().any(|flag| ["RW", "OW", "RM"].contains(&flag.text()));
    (key.bytes().to_vec(), written)
}

fn shown(args: &[Vec<u8>]) -> String {
    args.iter().map(|arg| arg.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
}

fn run(server: &mut Server, name: &str, args: &[Vec<u8>]) -> Reply {
    let mut command = vec![name.as_bytes().to_vec()];
    command.extend_from_slice(args);
    let reply = server.call(&command);
    if let Reply::Error(text) = &reply {
        let faults = ["syntax", "wrong number", "unknown", "Unrecognized", "need a", "can't be", "Invalid", "invalid"];
        assert!(!faults.iter().any(|fault| text.contains(fault)), "{name} {}: {text}", shown(args));
    }
    reply
}

fn populate(server: &mut Server) {
    server.say("FLUSHALL");
    let replies = server.say_all(POPULATION);
    assert!(!replies.iter().any(Reply::is_error), "{replies:?}");
    if server.is_newer() {
        let replies = server.say_all(NEWER_POPULATION);
        assert!(!replies.iter().any(Reply::is_error), "{replies:?}");
    }
}

/// A digest of all that is there.
fn digest(server: &mut Server) -> Reply {
    // What has expired may still be counted until it is looked for.
    for key in KEYS.iter().copied().flatten() {
        server.call(&["EXISTS", key]);
    }
    server.say("DEBUG DIGEST")
}

/// All values, consumer groups and times of expiry.
fn state(server: &mut Server) -> Vec<Reply> {
    let mut state = vec![digest(server)];
    for key in KEYS.iter().copied().flatten() {
        state.push(server.call(&["XINFO", "STREAM", key, "FULL"]));
        state.push(server.call(&["PEXPIRETIME", key]));
        if server.is_newer() {
            state.push(server.call(&["HPEXPIRETIME", key, "FIELDS", "5", "a", "b", "c", "LIMIT", "STORE"]));
        }
    }
    state
}

/// The server's time, in milliseconds since 1970.
fn time_ms(server: &mut Server) -> i64 {
    let reply = server.say("TIME");
    let [seconds, micros] = reply.list() else { panic!("two numbers") };
    let number = |reply: &Reply| reply.text().parse::<i64>().expect("a number");
    number(seconds) * 1000 + number(micros) / 1000
}

/// Runs a command as it is sent: with a deadline where it says how long.
fn run_as_sent(server: &mut Server, name: &str, args: &[Vec<u8>], base_ms: i64) -> Reply {
    let spec = lookup(name.as_bytes()).expect("accepted");
    let ttl = spec.effects(&borrowed(args)).expect("valid").ttl_effect.at();
    match ttl.and_then(|ttl| Some((ttl, ttl.at_ms(args, base_ms)?))) {
        Some((ttl, at)) => run_with(server, name, args, ttl, Expiry::At(at)),
        None => run(server, name, args),
    }
}

fn run_with(server: &mut Server, name: &str, args: &[Vec<u8>], ttl: TtlAt, expiry: Expiry) -> Reply {
    let spec = lookup(name.as_bytes()).expect("accepted");
    let (name, args) = spec.with_expiry(args.iter().map(Vec::as_slice), ttl, expiry);
    run(server, name, &args.into_iter().map(Cow::into_owned).collect::<Vec<_>>())
}

#[test]
fn idempotent_and_conditional_commands_change_nothing_when_they_run_again() {
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args)).expect("valid");
        populate(server);
        let base = time_ms(server);
        if run_as_sent(server, name, args, base).is_error() || effects.class.is_once() {
            return;
        }
        assert!(matches!(effects.class, Class::Idempotent | Class::Conditional));
        let once = state(server);
        let again = run_as_sent(server, name, args, base);
        if name == "XGROUP" && args[0].eq_ignore_ascii_case(b"CREATE") {
            assert!(matches!(&again, Reply::Error(text) if text.starts_with("BUSYGROUP")), "{again:?}");
        } else {
            assert!(!again.is_error(), "{name} {}: {again:?}", shown(args));
        }
        assert_eq!(once, state(server), "{name} {}", shown(args));
    });
}

/// All values, and how long what expires has left.
fn values_and_rests(server: &mut Server) -> (Vec<Reply>, Vec<i64>) {
    let mut values = vec![digest(server)];
    let mut rests = Vec::new();
    for key in KEYS.iter().copied().flatten() {
        values.push(server.call(&["EXISTS", key]));
        rests.push(server.call(&["PTTL", key]).int());
        if server.is_newer()
            && let Reply::List(fields) = server.call(&["HPTTL", key, "FIELDS", "5", "a", "b", "c", "LIMIT", "STORE"])
        {
            rests.extend(fields.iter().map(Reply::int));
        }
    }
    (values, rests)
}

#[test]
fn command_with_another_expiry_does_the_same_and_ends_within_a_second() {
    let mut compared = BTreeMap::new();
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args)).expect("valid");
        let Some(ttl) = effects.ttl_effect.at() else { return };
        populate(server);
        let reply = run(server, name, args);
        let (values, rests) = values_and_rests(server);
        let now = time_ms(server);
        let at = ttl.at_ms(args, if ttl.absolute { 0 } else { now }).expect("a number above 0");
        let rest = u64::try_from(at - now).ok().filter(|rest| *rest > 0).map(Expiry::In);
        for expiry in std::iter::once(Expiry::At(at)).chain(rest) {
            populate(server);
            let other_reply = run_with(server, name, args, ttl, expiry);
            assert_eq!(reply, other_reply, "{name} {} with {expiry:?}", shown(args));
            let (other_values, other_rests) = values_and_rests(server);
            assert_eq!(values, other_values, "{name} {} with {expiry:?}", shown(args));
            let near = |(rest, other): (&i64, &i64)| (rest - other).abs() < 1000 && (*rest < 0) == (*other < 0);
            let all_near = rests.iter().zip(&other_rests).all(near);
            assert!(all_near, "{name} {} with {expiry:?}: {rests:?}, {other_rests:?}", shown(args));
            *compared.entry(name.to_owned()).or_insert(0) += 1;
        }
    });
    assert!(compared.len() == 16 && compared.values().all(|count| *count > 20), "{compared:?}");
}

#[test]
fn what_clears_the_ttl_leaves_none() {
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args)).expect("valid");
        if effects.ttl_effect != TtlEffect::Clears {
            return;
        }
        populate(server);
        let written: Vec<_> = effects.keys.filter(|key| key.written).map(|key| &args[key.index]).collect();
        for key in &written {
            server.call(&[b"EXPIRE", key.as_slice(), b"5000"]);
        }
        let reply = run(server, name, args);
        // A condition may not hold, and with GET the answer does not say so.
        let may_have_done_nothing = effects.class == Class::Conditional && reply != Reply::Text("OK".into());
        if reply.is_error() || may_have_done_nothing {
            return;
        }
        for key in written {
            let rest = server.call(&[b"PTTL", key.as_slice()]).int();
            assert!(rest < 0, "{name} {}: {rest}", shown(args));
        }
    });
}

#[test]
fn whole_overwrites_leave_nothing_of_what_was() {
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args)).expect("valid");
        if effects.overwrite != Overwrite::Whole {
            return;
        }
        populate(server);
        let on_former = run(server, name, args);
        assert!(!on_former.is_error(), "{name} {} can fail: {on_former:?}", shown(args));
        let after_former = values(server, args, effects.keys);
        server.say("FLUSHALL");
        run(server, name, args);
        assert_eq!(after_former, values(server, args, effects.keys), "{name} {}", shown(args));
    });
}

/// Each key's value, and whether it expires.
fn values(server: &mut Server, args: &[Vec<u8>], keys: crate::commands::Keys) -> Vec<(Reply, bool)> {
    let value = |key: crate::commands::KeyAt| {
        let key = args[key.index].as_slice();
        let digest = server.call(&[&b"DEBUG"[..], b"DIGEST-VALUE", key]);
        (digest, server.call(&[b"PTTL", key]).int() >= 0)
    };
    keys.map(value).collect()
}
