//! The relay's frames over plain TCP, each behind its length: what the relay over gRPC is held against. Threads and blocking
//! sockets, nothing else.

use std::io::{BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use anyhow::{Result, ensure};
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use scalable_proto::{MESSAGE_BYTES_MAX, v1};

use super::frames;
use super::role::{Playing, Role, ready};

/// What a socket reads at once.
const READ_BYTES: usize = 256 << 10;

struct Receiver(BufReader<TcpStream>);

impl Receiver {
    fn new(socket: TcpStream) -> Self {
        Receiver(BufReader::with_capacity(READ_BYTES, socket))
    }

    fn next<M: Message + Default>(&mut self) -> Result<M> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        ensure!(length <= MESSAGE_BYTES_MAX, "a frame of {length} bytes");
        let mut frame = vec![0; length];
        self.0.read_exact(&mut frame)?;
        Ok(M::decode(Bytes::from(frame))?)
    }
}

struct Sender {
    socket: TcpStream,
    buffer: BytesMut,
}

impl Sender {
    fn new(socket: TcpStream) -> Self {
        Sender { socket, buffer: BytesMut::new() }
    }

    fn send(&mut self, message: &impl Message) -> Result<()> {
        self.buffer.clear();
        self.buffer.put_u32_le(message.encoded_len() as u32);
        message.encode(&mut self.buffer)?;
        Ok(self.socket.write_all(&self.buffer)?)
    }
}

fn ends(socket: TcpStream) -> Result<(Sender, Receiver)> {
    socket.set_nodelay(true)?;
    Ok((Sender::new(socket.try_clone()?), Receiver::new(socket)))
}

/// The role of the relay: the first connection is the sink's, the second the client's.
pub fn relay() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    ready(&listener.local_addr()?.to_string())?;
    let (mut to_sink, mut of_sink) = ends(listener.accept()?.0)?;
    let (mut to_client, mut of_client) = ends(listener.accept()?.0)?;
    std::thread::spawn(move || -> Result<()> {
        loop {
            to_client.send(&frames::results(of_sink.next()?))?;
        }
    });
    loop {
        to_sink.send(&frames::dispatch(of_client.next()?))?;
    }
}

/// The role of the sink.
pub fn sink(relay: &str) -> Result<()> {
    let (mut to_relay, mut of_relay) = ends(TcpStream::connect(relay)?)?;
    ready("")?;
    loop {
        to_relay.send(&frames::execute(of_relay.next()?))?;
    }
}

/// The client's end, with the processes of the other ends.
pub struct Client {
    out: Sender,
    results: Receiver,
    _others: [Playing; 2],
}

impl Client {
    /// Starts relay and sink.
    pub fn of_relay() -> Result<Self> {
        let relay = Playing::start(Role::TcpRelay, None)?;
        let sink = Playing::start(Role::TcpSink, Some(&relay.address))?;
        let (out, results) = ends(TcpStream::connect(&relay.address)?)?;
        Ok(Client { out, results, _others: [relay, sink] })
    }

    /// As [`super::relay::Client::stream`].
    pub fn stream(&mut self, count: u32) -> Result<f64> {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            let out = &mut self.out;
            let sending = scope.spawn(move || -> Result<()> {
                for first in (0..count).step_by(frames::BATCH as usize) {
                    out.send(&frames::append(first, frames::BATCH.min(count - first)))?;
                }
                Ok(())
            });
            let mut back = 0;
            while back < count {
                back += frames::check(&self.results.next()?)?;
            }
            sending.join().map_err(|_| anyhow::anyhow!("sending panicked"))??;
            Ok(begin.elapsed().as_secs_f64())
        })
    }

    /// As [`super::relay::Client::round_trips`].
    pub fn round_trips(&mut self, count: u32) -> Result<Vec<f64>> {
        let one = |index| {
            let begin = Instant::now();
            self.out.send(&frames::append(index, 1))?;
            frames::check(&self.results.next()?)?;
            Ok(begin.elapsed().as_secs_f64() * 1e6)
        };
        (0..count).map(one).collect()
    }
}

/// A sink and nothing between: one hop.
pub struct Hop {
    to_sink: Sender,
    of_sink: Receiver,
    _sink: Playing,
}

impl Hop {
    /// Starts the sink.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let sink = Playing::start(Role::TcpSink, Some(&listener.local_addr()?.to_string()))?;
        let (to_sink, of_sink) = ends(listener.accept()?.0)?;
        Ok(Hop { to_sink, of_sink, _sink: sink })
    }

    /// As [`super::relay::Client::chain`].
    pub fn chain(&mut self, length: u32) -> Result<f64> {
        let begin = Instant::now();
        for index in 0..length {
            self.to_sink.send(&frames::link(index))?;
            let _: v1::WorkerBatch = self.of_sink.next()?;
        }
        Ok(begin.elapsed().as_secs_f64())
    }
}
