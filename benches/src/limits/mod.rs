//! Limits and floors: the same work without scheduling, measured in the same run. What ours is held against lives here; ours
//! does not.

pub mod copy;
pub mod frames;
pub mod relay;
pub mod role;
pub mod rows;
pub mod tcp;
