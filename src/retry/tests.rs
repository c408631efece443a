//! Every row of the table is judged by error texts as servers send them.

use std::collections::HashSet;

use super::*;

use Executed::{Maybe, No, Partly};
use FailureClass::{Ambiguous, Backoff, Dead, Hold, Route};

fn judge(origin: Origin, text: &str, arguments: &[&[u8]]) -> Failure {
    let (code, message) = text.split_once(' ').unwrap_or((text, ""));
    classify(code, message, Context { origin, arguments })
}

/// Judges each text and compares class, effect and reason.
fn check(origin: Origin, cases: &[(&str, FailureClass, Executed, ReasonClass)]) {
    for (text, class, executed, reason) in cases {
        let failure = judge(origin, text, &[]);
        assert_eq!((failure.class, failure.executed, failure.reason), (*class, *executed, *reason), "{text}");
    }
}

#[test]
fn state_of_the_target_is_a_hold_whatever_answered() {
    let texts = [
        "LOADING Redis is loading the dataset in memory",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "ERR Can not execute the command on a stale replica script: 9b, on @user_script:1.",
        "READONLY You can't write against a read only replica.",
        "CLUSTERDOWN The cluster is down",
        "CLUSTERDOWN Hash slot not served",
        "NOREPLICAS Not enough good replicas to write.",
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands \
         that may modify the data set are disabled, because this instance is configured to report errors during writes \
         if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the Redis logs for details about \
         the RDB error.",
        "OOM command not allowed when used memory > 'maxmemory'.",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
        "NOAUTH Authentication required.",
        "WRONGPASS invalid username-password pair or user is disabled.",
        "DENIED Redis is running in protected mode because protected mode is enabled and no password is set",
        "NOPROTO unsupported protocol version",
        "MOVED 15495 127.0.0.1:7002",
        "ASK 15495 127.0.0.1:7002",
    ];
    for text in texts {
        for origin in [Origin::Command, Origin::Script] {
            check(origin, &[(text, Hold, No, ReasonClass::Unavailable)]);
        }
    }
}

#[test]
fn state_of_the_target_known_by_text_alone_is_a_hold() {
    let texts = [
        "ERR max number of clients reached",
        "ERR max number of clients + cluster connections reached",
        "ERR invalid password",
        "ERR AUTH <password> called without any password configured for the default user. Are you sure your \
         configuration is correct?",
        "ERR Client sent AUTH, but no password is set",
        "ERR DB index is out of range",
        "ERR SELECT is not allowed in cluster mode",
        "ERR illegal address: 10.0.0.1:43210",
        "no upstream host",
    ];
    for text in texts {
        check(Origin::Command, &[(text, Hold, No, ReasonClass::Unavailable)]);
    }
}

#[test]
fn what_is_neither_the_targets_state_nor_the_units_fault() {
    check(
        Origin::Command,
        &[
            ("upstream failure", Ambiguous, Maybe, ReasonClass::Ambiguous),
            ("NOSCRIPT No matching script. Please use EVAL.", Route, No, ReasonClass::Unavailable),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Backoff, No, ReasonClass::RetriesExhausted),
            ("ERR something that no table knows", Backoff, No, ReasonClass::RetriesExhausted),
            ("TSDB the key is not a TSDB key", Backoff, No, ReasonClass::RetriesExhausted),
            ("", Backoff, No, ReasonClass::RetriesExhausted),
        ],
    );
}

#[test]
fn fault_of_the_unit_is_dead() {
    use ReasonClass::*;
    let cases = [
        ("NOPERM this user has no permissions to run the 'set' command", NoPermission),
        ("NOPERM this user has no permissions to access one of the keys used as arguments", NoPermission),
        ("NOPERM User gw has no permissions to run the 'set' command", NoPermission),
        ("ERR unknown command 'FOO', with args beginning with: 'a' 'b' ", UnknownCommand),
        ("ERR unknown command `FOO`, with args beginning with: `a`, `b`, ", UnknownCommand),
        ("ERR unknown subcommand 'FOO'. Try XGROUP HELP.", UnknownCommand),
        ("ERR Unknown subcommand or wrong number of arguments for 'FOO'. Try XGROUP HELP.", UnknownCommand),
        ("ERR wrong number of arguments for 'set' command", BadArgument),
        ("ERR syntax error", BadArgument),
        ("ERR invalid expire time in 'set' command", BadArgument),
        (
            "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.",
            BadArgument,
        ),
        ("ERR invalid longitude,latitude pair 200.000000,100.000000", BadArgument),
        ("ERR Invalid stream ID specified as stream command argument", BadArgument),
        ("ERR value is not a valid float", BadArgument),
        ("ERR weight value is not a float", BadArgument),
        ("CROSSSLOT Keys in request don't hash to the same slot", CrossSlot),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", WrongType),
        ("BUSYKEY Target key name already exists.", WrongState),
        ("NOGROUP No such key 'k' or consumer group 'g' in XREADGROUP with GROUP option", WrongState),
        ("ERR value is not an integer or out of range", WrongState),
        ("ERR increment or decrement would overflow", WrongState),
        ("ERR increment would produce NaN or Infinity", WrongState),
        ("ERR hash value is not an integer", WrongState),
        ("ERR hash value is not a float", WrongState),
        ("ERR no such key", WrongState),
        ("ERR index out of range", WrongState),
        ("ERR offset is out of range", WrongState),
        ("ERR string exceeds maximum allowed size (proto-max-bulk-len)", WrongState),
        ("ERR The ID specified in XADD is equal or smaller than the target stream top item", WrongState),
        (
            "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the \
          MKSTREAM option to create an empty stream automatically.",
            WrongState,
        ),
    ];
    for (text, reason) in cases {
        check(Origin::Command, &[(text, Dead, No, reason)]);
    }
}

#[test]
fn script_that_was_refused_left_nothing_behind_and_one_that_failed_may_have() {
    use ReasonClass::{NoPermission, ScriptError, UnknownCommand};
    check(
        Origin::Script,
        &[
            ("NOPERM this user has no permissions to run the 'eval' command", Dead, No, NoPermission),
            ("NOPERM this user has no permissions to access one of the keys used as arguments", Dead, No, NoPermission),
            ("ERR unknown command 'EVALSHA', with args beginning with: 'x' ", Dead, No, UnknownCommand),
            (
                "ERR Error compiling script (new function): user_script:1: '=' expected near 'secret'",
                Dead,
                No,
                ScriptError,
            ),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value script: 9b, on @user_script:3.",
                Dead,
                Partly,
                ScriptError,
            ),
            ("ERR Error running script (call to f_9b): @user_script:2: WRONGTYPE Operation", Dead, Partly, ScriptError),
            (
                "ERR user_script:1: attempt to index a nil value script: 9b, on @user_script:1.",
                Dead,
                Partly,
                ScriptError,
            ),
            ("ERR user_script:1: max number of clients script: 9b, on @user_script:1.", Dead, Partly, ScriptError),
            (
                "ERR The user executing the script can't run this command or subcommand script: 9b, on @user_script:1.",
                Dead,
                Partly,
                ScriptError,
            ),
            ("ERR Unknown Redis command called from script script: 9b, on @user_script:1.", Dead, Partly, ScriptError),
            ("MYERROR as the user likes", Dead, Partly, ScriptError),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: 9b, on @user_script:1.",
                Hold,
                No,
                ReasonClass::Unavailable,
            ),
        ],
    );
}

/// Compares what is kept of a text.
fn check_kept(origin: Origin, text: &str, arguments: &[&[u8]], code: &str, message: &str) {
    let failure = judge(origin, text, arguments);
    assert_eq!((&*failure.code, &*failure.message), (code, message), "{text}");
}

#[test]
fn message_of_a_command_keeps_nothing_of_its_arguments() {
    let check = |text: &str, arguments: &[&[u8]], code: &str, message: &str| {
        check_kept(Origin::Command, text, arguments, code, message);
    };
    let known = "wrong number of arguments for 'set' command";
    check(&format!("ERR {known}"), &[], "ERR", known);
    check("ERR unknown command 'FOO', with args beginning with: 's3cret' 'b' ", &[], "ERR", "unknown command …");
    check("ERR invalid longitude,latitude pair 200.000000,100.000000", &[], "ERR", "invalid longitude,latitude");
    let group = "NOGROUP No such key 's3cret' or consumer group 'it's' in XREADGROUP";
    check(group, &[], "NOGROUP", "No such key … in XREADGROUP");
    check("ERR no 's3cret' for the 'set' command", &[], "ERR", "no … command");
    check("ERR it starts with 's3cret", &[], "ERR", "it starts with …");
    let both: [&[u8]; 2] = [b"s3cret", b"s3cret-long"];
    check("ERR cannot do s3cret-long with s3cret", &both, "ERR", "cannot do … with …");
    check("s3cret is not allowed", &[b"s3cret"], "unknown", "is not allowed");
    check("SECRET is not allowed", &[b"TOPSECRET"], "unknown", "is not allowed");
}

#[test]
fn message_of_a_script_keeps_nothing_but_its_line() {
    let says = "the script failed; what it wrote before stays written";
    check_kept(Origin::Script, "JOHN SMITH s3cret", &[], "script-error", says);
    let text = "ERR user_script:12: bad value s3cret script: 9b, on @user_script:12.";
    check_kept(Origin::Script, text, &[], "ERR", &format!("line 12: {says}"));
}

#[test]
fn echo_does_not_decide() {
    let failure =
        judge(Origin::Command, "ERR unknown command 'max number of clients', with args beginning with: 'x'", &[]);
    assert_eq!(failure.class, Dead);
}

#[test]
fn message_is_bounded_and_printable() {
    let long = judge(Origin::Command, &format!("ERR {}", "ä\u{7}".repeat(400)), &[]);
    assert!(long.message.len() <= Failure::MAX_MESSAGE, "{} bytes", long.message.len());
    assert!(long.message.ends_with('…'));
    assert!(!long.message.chars().any(char::is_control));
    assert_eq!(&*judge(Origin::Command, "ERR one\ntwo\u{1b}[31m", &[]).message, "one\\ntwo\\u{1b}[31m");
}

fn failure(class: FailureClass) -> Failure {
    Failure { class, ..Failure::dead(ReasonClass::WrongType, No, "TEST", "") }
}

const POLICY: Policy = Policy { max_retries: 3, base: Duration::from_millis(200), cap: Duration::from_secs(30) };

#[test]
fn first_execution_and_max_retries_more() {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut history = History::default();
    for retry in 1..=3 {
        match decide(&POLICY, history, &failure(Backoff), &mut rng) {
            Verdict::Retry { attempt, .. } => assert_eq!(attempt, retry),
            verdict => panic!("{verdict:?}"),
        }
        history.attempts = retry;
    }
    let verdict = decide(&POLICY, history, &failure(Backoff), &mut rng);
    assert_eq!(verdict, Verdict::Dead { reason: ReasonClass::RetriesExhausted });
}

#[test]
fn task_without_retries_is_executed_once() {
    let policy = Policy { max_retries: 0, ..POLICY };
    let verdict = decide(&policy, History::default(), &failure(Backoff), &mut fastrand::Rng::with_seed(1));
    assert_eq!(verdict, Verdict::Dead { reason: ReasonClass::RetriesExhausted });
}

#[test]
fn hold_and_route_spend_nothing_whatever_was_spent() {
    let mut rng = fastrand::Rng::with_seed(1);
    let history = History { attempts: 200, strikes: 4, on_trial: true };
    assert_eq!(decide(&POLICY, history, &failure(Hold), &mut rng), Verdict::Hold);
    assert_eq!(decide(&POLICY, history, &failure(Route), &mut rng), Verdict::Route);
}

#[test]
fn dead_says_why() {
    let verdict = decide(&POLICY, History::default(), &failure(Dead), &mut fastrand::Rng::with_seed(1));
    assert_eq!(verdict, Verdict::Dead { reason: ReasonClass::WrongType });
}

#[test]
fn ambiguous_unit_is_a_suspect_for_ever_unless_it_was_on_trial() {
    let mut rng = fastrand::Rng::with_seed(1);
    let history = History { attempts: 3, strikes: 4, on_trial: false };
    for _ in 0..100 {
        assert!(matches!(decide(&POLICY, history, &failure(Ambiguous), &mut rng), Verdict::Suspect { strikes: 4, .. }));
    }
}

#[test]
fn fifth_strike_on_trial_is_dead_whatever_the_retries() {
    let mut rng = fastrand::Rng::with_seed(1);
    let policy = Policy { max_retries: 20, ..POLICY };
    let mut history = History { on_trial: true, ..History::default() };
    for strike in 1..MAX_STRIKES {
        match decide(&policy, history, &failure(Ambiguous), &mut rng) {
            Verdict::Suspect { strikes, .. } => assert_eq!(strikes, strike),
            verdict => panic!("{verdict:?}"),
        }
        history.strikes = strike;
    }
    let verdict = decide(&policy, history, &failure(Ambiguous), &mut rng);
    assert_eq!(verdict, Verdict::Dead { reason: ReasonClass::Ambiguous });
}

#[test]
fn names_of_closed_sets_are_distinct() {
    let reasons: HashSet<_> = ReasonClass::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(reasons.len(), ReasonClass::ALL.len());
    let classes: HashSet<_> = FailureClass::ALL.iter().map(|class| class.as_str()).collect();
    assert_eq!(classes.len(), FailureClass::ALL.len());
}
