//! What may be kept of a server's error text.
//!
//! Servers echo arguments in errors, and arguments are the users' data: they belong in no log, no metric and no list
//! of errors. So what could be an echo is cut here, and what remains is bounded and printable.

use std::fmt::Write;

use super::{Context, Failure, Origin};

/// What stands for something that was cut.
const CUT: &str = "…";

/// Texts after which the server goes on with what it was sent.
const ECHO_FOLLOWS: [&str; 2] = [", with args beginning with:", "pair "];

/// Arguments shorter than this say nothing, and would riddle the text if they were cut out of it.
const SHORTEST_SECRET: usize = 3;

/// A code that is in no table, where it looks like one and cannot be an echo. A script's own error, or a module without
/// codes, begins with any word.
pub(super) fn foreign_code<'a>(code: &'a str, context: Context<'_>) -> &'a str {
    let is_code = (1..=32).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
    let is_echo = || context.arguments.iter().any(|argument| contains(argument, code.as_bytes()));
    match context.origin {
        Origin::Script | Origin::InsideScript => "script-error",
        Origin::Command if is_code && !is_echo() => code,
        Origin::Command => "unknown",
    }
}

/// A row's own words, with the script's line that the server names.
pub(super) fn with_script_line(says: &str, text: &str) -> String {
    let line = text.split_once("user_script:").map(|(_, after)| {
        let digits = after.bytes().take_while(u8::is_ascii_digit).count();
        &after[..digits]
    });
    match line {
        Some(line) if !line.is_empty() => format!("line {line}: {says}"),
        _ => says.to_owned(),
    }
}

/// An error's text without what the server quotes in it. Command names stay.
pub(super) fn without_quotes(text: &str) -> String {
    let text = ECHO_FOLLOWS.iter().find_map(|marker| text.find(marker).map(|at| &text[..at])).unwrap_or(text);
    let Some((before, quoted, after)) = quoted(text) else { return text.to_owned() };
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'|' | b'_' | b'-');
    let names_command = after.starts_with(" command") && quoted.trim_matches('\'').bytes().all(is_word);
    if names_command || quoted == "'maxmemory'" {
        return text.to_owned();
    }
    format!("{before}{CUT}{after}")
}

/// Cuts every argument that occurs in the text.
pub(super) fn scrubbed(text: &str, arguments: &[&[u8]]) -> String {
    let mut secrets: Vec<&str> = arguments
        .iter()
        .filter_map(|argument| std::str::from_utf8(argument).ok())
        .filter(|argument| argument.len() >= SHORTEST_SECRET)
        .collect();
    // The longest first, so that no argument is left half visible because a shorter one was cut out of it.
    secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret, CUT))
}

/// Bounded and printable.
pub(super) fn tidy(text: &str) -> Box<str> {
    let mut tidy = String::with_capacity(text.len().min(Failure::MAX_MESSAGE));
    for character in text.trim().chars() {
        let length = tidy.len();
        if character.is_control() {
            write!(tidy, "{}", character.escape_default()).expect("writing into a string succeeds");
        } else {
            tidy.push(character);
        }
        if tidy.len() > Failure::MAX_MESSAGE - CUT.len() {
            tidy.truncate(length);
            tidy.push_str(CUT);
            break;
        }
    }
    tidy.into_boxed_str()
}

/// Splits around everything from the first quotation mark to the last one: what is quoted may itself contain quotation
/// marks, and it is better to cut too much.
fn quoted(text: &str) -> Option<(&str, &str, &str)> {
    let is_mark = |&(at, character): &(usize, char)| matches!(character, '\'' | '"' | '`') && !is_apostrophe(text, at);
    let (start, _) = text.char_indices().find(is_mark)?;
    let (last, _) = text.char_indices().rfind(is_mark)?;
    let end = if last == start { text.len() } else { last + 1 };
    Some((&text[..start], &text[start..end], &text[end..]))
}

/// Whether the mark at `at` is the one of "can't".
fn is_apostrophe(text: &str, at: usize) -> bool {
    let letter = |character: Option<char>| character.is_some_and(char::is_alphanumeric);
    letter(text[..at].chars().next_back()) && letter(text[at + 1..].chars().next())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len().max(1)).any(|window| window == part)
}
