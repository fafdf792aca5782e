//! What is said before anything else on a stream, the same for workers and clients.

use scalable_proto::{PROTOCOL, v1};
use tonic::Status;

use super::{Identity, Reactor};

/// Said to a data stream whose session is not known any more.
pub(super) const SESSION_OVER: &str = "this session is over: begin a new one on control";

/// The answer to a hello.
pub(super) fn welcome(identity: &Identity, session: u64, protocol: u32, received: v1::Acks, resumed: bool) -> v1::Welcome {
    v1::Welcome {
        cluster_id: identity.cluster_id.clone(),
        epoch: identity.epoch,
        session,
        protocol,
        heartbeat_ms: identity.heartbeat_ms,
        received: Some(received),
        resumed,
        object_key: bytes::Bytes::new(),
        store_address: String::new(),
    }
}

impl Reactor {
    /// The version to speak with a peer, or why it is sent away.
    pub(super) fn check_hello(&self, hello: &v1::Hello) -> Result<u32, Status> {
        let protocol = Self::protocol(hello)?;
        self.check_cluster(hello)?;
        Ok(protocol)
    }

    /// The version both sides speak, or why there is none.
    fn protocol(hello: &v1::Hello) -> Result<u32, Status> {
        let theirs = hello.protocol.unwrap_or_default();
        let highest = theirs.max.min(*PROTOCOL.end());
        if highest >= theirs.min && highest >= *PROTOCOL.start() && theirs.min > 0 {
            return Ok(highest);
        }
        Err(Status::failed_precondition(format!(
            "this scheduler ({}) speaks protocol {} to {}, the peer ({}) speaks {} to {}: use programs of the same release",
            env!("CARGO_PKG_VERSION"),
            PROTOCOL.start(),
            PROTOCOL.end(),
            hello.build,
            theirs.min,
            theirs.max
        )))
    }

    fn check_cluster(&self, hello: &v1::Hello) -> Result<(), Status> {
        if hello.cluster_id.is_empty() || hello.cluster_id == self.identity.cluster_id {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "the peer belongs to cluster {}, this is cluster {}: check the address",
            hello.cluster_id, self.identity.cluster_id
        )))
    }

    pub(super) fn new_session(&mut self) -> u64 {
        self.next_session += 1;
        self.next_session
    }
}
