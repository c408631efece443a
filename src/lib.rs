//! Redrive takes the Redis writes that a service could not make, keeps them safe, and makes them later: in order, and
//! only while they are still true. `ARCHITECTURE.md` has the picture; DESIGN words are used throughout.
//!
//! The way of a task, module by module:
//!
//! - [`api`]: HTTP in front; validates through [`task`] and hands over to [`queue`]. It queues, it never executes.
//! - [`queue`]: the typed facade over [`log`]: lanes, the envelope of a record, what was accepted recently.
//! - [`log`]: the seam to durable storage, with the embedded journal behind it. It never sees a task.
//! - [`consumer`]: windows of records, the order of keys, execution, settling.
//! - [`target`]: a named Redis and how to write to it.
//! - [`dead_letters`]: the tasks that a person must look at.
//! - [`task`], [`commands`], [`retry`], [`finding`], [`telemetry::metrics`]: leaves that decide and name; no IO.
//! - [`faults`]: what tests break on purpose; empty in releases.
//! - [`app`]: puts the parts together, starts and stops them in order. [`cli`]: the commands of the binary.

pub mod api;
pub mod app;
pub mod cli;
pub mod commands;
pub mod config;
pub mod consumer;
pub mod dead_letters;
pub mod faults;
pub mod finding;
pub mod log;
pub mod queue;
pub mod retry;
pub mod shutdown;
pub mod target;
pub mod task;
pub mod telemetry;
