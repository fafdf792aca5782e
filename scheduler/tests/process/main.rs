//! A real scheduler process and what its peers see of it.

mod common;
mod pages;
mod resume;
