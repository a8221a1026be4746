//! The engine's tests: one program, so that they share the house.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod hostile;
mod house;
mod imaging;
mod limits;
mod made_rocksdb;
mod meanwhile;
mod restoring;
mod taking_over;
mod verbs;
mod verifying;
