//! Holds the table against a real server of the version that it is made for.

use std::{borrow::Cow, collections::BTreeMap, io::Write as _};

use fastrand::Rng;

use super::{
    generate::{Generator, KEYS, POPULATION, TEMPLATES},
    server::{Reply, Server},
};
use crate::commands::{ArgumentFault, Class, NotAccepted, Overwrite, lookup, refused, table::ACCEPTED};

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
    for name in ACCEPTED.iter().map(|spec| spec.name).chain(refused::names()) {
        assert!(known(name), "the server has no {name}");
    }
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

/// Calls `check` with arguments for every accepted command.
fn for_each_command(mut check: impl FnMut(&mut Server, &str, &[Vec<u8>])) {
    let mut server = Server::start();
    let mut generator = generator(&mut server);
    let mut counts: BTreeMap<&str, usize> = ACCEPTED.iter().map(|spec| (spec.name, 0)).collect();
    for (name, template) in TEMPLATES {
        for _ in 0..ROUNDS {
            check(&mut server, name, &generator.arguments(template));
            *counts.get_mut(name).expect("an accepted command") += 1;
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
}

/// All values, consumer groups and times of expiry.
fn state(server: &mut Server, with_expiry: bool) -> Vec<Reply> {
    let mut state = vec![server.say("DEBUG DIGEST")];
    for key in KEYS.iter().copied().flatten() {
        state.push(server.call(&["XINFO", "STREAM", key, "FULL"]));
        state.push(server.call(&[if with_expiry { "PEXPIRETIME" } else { "PERSIST" }, key]));
    }
    state
}

#[test]
fn idempotent_and_conditional_commands_change_nothing_when_they_run_again() {
    for_each_command(|server, name, args| {
        let effects = lookup(name.as_bytes()).expect("accepted").effects(&borrowed(args)).expect("valid");
        populate(server);
        if run(server, name, args).is_error() || effects.class.is_once() {
            return;
        }
        assert!(matches!(effects.class, Class::Idempotent | Class::Conditional));
        // A relative TTL ends later when it is set later; it becomes a deadline before it is sent.
        let with_expiry = effects.ttl_effect.at().is_none_or(|ttl| ttl.absolute);
        let once = state(server, true);
        let again = run(server, name, args);
        if name == "XGROUP" && args[0].eq_ignore_ascii_case(b"CREATE") {
            assert!(matches!(&again, Reply::Error(text) if text.starts_with("BUSYGROUP")), "{again:?}");
        } else {
            assert!(!again.is_error(), "{name} {}: {again:?}", shown(args));
        }
        if with_expiry {
            assert_eq!(once, state(server, true), "{name} {}", shown(args));
        } else {
            assert_eq!(once[0], state(server, false)[0], "{name} {}", shown(args));
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
