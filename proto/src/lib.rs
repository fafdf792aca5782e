//! The wire of Scalable. Types only: what they mean is written in the `.proto` files, what is done with them lives in the
//! crates that send and receive them.

/// `scalable.v1`: the only version of the wire so far.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("scalable.v1");

    /// The encoded descriptor set, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/scalable.v1.bin"));
}

/// Lowest and highest protocol this build speaks. A peer whose range does not meet it is refused at the handshake.
pub const PROTOCOL: std::ops::RangeInclusive<u32> = 1..=1;

/// Largest message a peer may send, bytes. Larger ones are refused by the decoder with `OUT_OF_RANGE`.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;
