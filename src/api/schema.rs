//! Shapes that the API document shows.
//!
//! Requests have closed enums and no further fields. States and outcomes in answers are plain strings with their
//! values in the description: a closed enum would make generated clients fail at the next value.

mod answer;
mod problems;
mod request;

pub(super) use answer::*;
pub(super) use problems::{ProbeProblems, ReadProblems, TokenProblems, WriteProblems};
pub(super) use request::{BatchDocument, TaskDocument};
