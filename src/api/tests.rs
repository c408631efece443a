//! The planes as their clients see them: over real sockets where bytes and time matter, else through the router.

mod batch;
mod harness;
mod ops;
mod problems;
mod status;
mod submit;
mod threats;
