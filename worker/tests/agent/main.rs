//! The agent as a real process against a scheduler that the test plays.

mod fake;
mod functions;
mod lane_host;
mod objects;
mod outputs;
mod processes;
mod sessions;
