//! A real scheduler process and what its peers see of it.

#![allow(clippy::unwrap_used)]

mod common;
mod open;
mod pages;
mod resume;
mod secured;
