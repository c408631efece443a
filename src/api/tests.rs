//! The planes as their clients see them.

mod harness;
mod submit;
