//! Tests of the machine.
#![allow(clippy::unwrap_used)]

mod smoke;
