//! Parts of the library that it does not show, compiled once more: they stand alone. So their hot paths can be
//! counted without a door in the library that only this program would use.

#![allow(unused, reason = "only some of it is counted; what is unused in the library is told there")]

#[path = "../../src/log/journal/frame.rs"]
pub mod frame;

#[path = "../../src/consumer"]
pub mod consumer {
    pub mod coalesce;
    pub mod schedule;
}
