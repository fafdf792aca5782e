//! Cases: what the machine says, word for word, when this happens. `>` is what is done, the lines below are the answer.

mod ahead;
mod cancel;
mod dependencies;
mod explain;
mod forget;
mod lengths;
mod limits;
mod moves;
mod near;
mod open;
mod retries;
mod scaling;
mod sessions;
mod submit;
