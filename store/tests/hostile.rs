//! Peers that lie, break, stall or flood. The frames here are written by hand, from `docs/peer-protocol.md`.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use common::*;
use scalable_store::*;

const MIB: usize = 1 << 20;

fn client_hello() -> Vec<u8> {
    [&b"SCALPEER"[..], &[1, 0, 1, 0, 0, 0, 0, 0]].concat()
}

fn server_hello() -> Vec<u8> {
    [&b"SCALPEER"[..], &[1, 0, 0, 0], &(MIB as u32).to_le_bytes(), &[7; 16], &[0; 8]].concat()
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], &[kind, 0, 0, 0], body].concat()
}

fn chunk(offset: usize, content: &[u8]) -> Vec<u8> {
    let sum = checksum(content).to_le_bytes();
    let head = [&(offset as u64).to_le_bytes()[..], &(content.len() as u32).to_le_bytes(), &sum].concat();
    [frame(5, &head), content.to_vec()].concat()
}

fn size(len: usize) -> Vec<u8> {
    frame(130, &(len as u64).to_le_bytes())
}

fn fetch_frame(id: ObjectId, capability: &Capability, length: u64) -> Vec<u8> {
    let mut body = vec![0];
    [id.run, id.group, id.index, id.attempt].iter().for_each(|part| body.extend(part.to_le_bytes()));
    body.extend([0; 16]);
    body.extend(capability.expires_ms.to_le_bytes());
    body.extend(capability.mac);
    body.extend(0u64.to_le_bytes());
    body.extend(length.to_le_bytes());
    frame(1, &body)
}

/// The code in a status frame.
fn status(stream: &mut TcpStream) -> u16 {
    let mut bytes = [0; 10];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!((bytes[0], bytes[4]), (2, 129));
    u16::from_le_bytes([bytes[8], bytes[9]])
}

fn greeted(address: std::net::SocketAddr) -> (TcpStream, u16) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&client_hello()).unwrap();
    let mut hello = [0; 40];
    stream.read_exact(&mut hello).unwrap();
    (stream, u16::from_le_bytes([hello[10], hello[11]]))
}

/// Answers every request on every connection with `answer` and then closes, or keeps the connection open for ever.
fn liar(answer: Vec<Vec<u8>>, pause: Option<Duration>, stays: bool) -> Holder {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hello = [0; 16];
            if stream.read_exact(&mut hello).is_err() {
                continue;
            }
            for part in &answer {
                // The other side may have had enough.
                if stream.write_all(part).is_err() {
                    break;
                }
                pause.into_iter().for_each(std::thread::sleep);
            }
            if stays {
                kept.push(stream);
            } else {
                // Orderly, so that what was sent arrives: with the request unread a close would be a reset.
                drop(stream.shutdown(std::net::Shutdown::Write));
                drop(std::io::copy(&mut stream, &mut std::io::sink()));
            }
        }
    });
    holder(address)
}

/// Whatever a peer does, the reason is told, and a better one is asked.
fn check(what: &str, liar: Holder, expected: impl Fn(&SourceError) -> bool) {
    let world = World::new();
    let content = bytes(9 * MIB + 5, 3);
    let patient = || {
        fetcher(|options| {
            options.short_cut = false;
            options.stall = Duration::from_millis(if what.contains("stall") { 300 } else { 30_000 });
        })
    };
    let fetcher = patient();
    let alone = world.request(id(1), content.len() as u64, std::slice::from_ref(&liar));
    let error = fetcher.fetch(alone).wait().unwrap_err();
    let FetchError::Unavailable { sources, .. } = &error else { panic!("{what}: {error}") };
    assert!(sources.len() == 1 && sources[0].0 == liar.address && expected(&sources[0].1), "{what}: {error}");
    assert!(error.to_string().contains(&liar.address), "{error}");

    let good = world.peer("good");
    good.put(1, &content);
    let holders = [liar, good.holder()];
    let fetcher = patient();
    let got = fetcher.fetch(world.request(id(1), content.len() as u64, &holders)).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), content, "{what}");
    // The good one may have given everything before the other was heard of.
    assert!(fetcher.metrics().source_failures <= 1, "{what}");
    assert_eq!((fetcher.metrics().pending, fetcher.metrics().bytes_in_flight), (0, 0), "{what}");
}

#[test]
fn transfers_that_are_truncated_damaged_or_nonsense_are_found_and_replaced() {
    let content = bytes(9 * MIB + 5, 3);
    let first = chunk(0, &content[..MIB]);
    let second = chunk(MIB, &content[MIB..2 * MIB]);
    let mut damaged = second.clone();
    damaged[1000] ^= 1;
    let whole = size(content.len());
    let broken_after =
        |bytes: usize| move |e: &SourceError| matches!(e, SourceError::Broken { received, .. } if *received == bytes as u64);
    check("closed at once", liar(vec![], None, false), |e| matches!(e, SourceError::Broken { .. } | SourceError::Connect(_)));
    check("another protocol", liar(vec![vec![b'H'; 40]], None, false), |e| matches!(e, SourceError::Protocol(_)));
    check(
        "truncated",
        liar(vec![server_hello(), whole.clone(), first.clone(), second[..5000].to_vec()], None, false),
        broken_after(MIB),
    );
    check("damaged", liar(vec![server_hello(), whole.clone(), first.clone(), damaged], None, true), |e| {
        *e == SourceError::Corrupt(MIB as u64)
    });
    check("another size", liar(vec![server_hello(), size(5)], None, true), |e| {
        matches!(e, SourceError::SizeDiffers { found: 5, .. })
    });
    check("another chunk", liar(vec![server_hello(), whole.clone(), second.clone()], None, true), |e| {
        matches!(e, SourceError::Protocol(_))
    });
    check("an endless frame", liar(vec![server_hello(), vec![255; 64]], None, true), |e| matches!(e, SourceError::Broken { .. }));
    check("gone", liar(vec![server_hello(), frame(129, &[1, 0])], None, true), |e| *e == SourceError::Refused(Code::Gone));
    check("silent: a stall", liar(vec![server_hello()], None, true), |e| matches!(e, SourceError::Stalled(_)));
    let drops =
        std::iter::once(server_hello()).chain(std::iter::once(whole)).chain(first.chunks(1).take(500).map(<[u8]>::to_vec));
    check("drop by drop: a stall", liar(drops.collect(), Some(Duration::from_millis(10)), true), |e| {
        matches!(e, SourceError::Stalled(_))
    });
}

#[test]
fn nobody_there_and_nobody_known_are_told_apart() {
    let world = World::new();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fetcher = tcp_fetcher();
    let error = fetcher.fetch(world.request(id(1), 10, &[holder(closed)])).wait().unwrap_err();
    assert!(error.to_string().contains("cannot connect"), "{error}");
    let error = fetcher.fetch(world.request(id(1), 10, &[])).wait().unwrap_err();
    assert!(error.to_string().contains("no known holder"), "{error}");
}

#[test]
fn a_holder_that_fails_late_leaves_its_chunks_to_one_that_was_done() {
    let world = World::new();
    let content = bytes(40 * MIB, 3);
    let good = world.peer("good");
    good.put(1, &content);
    // Takes its batch and is still silent when the other one has done the rest.
    let silent = liar(vec![server_hello()], None, true);
    let fetcher = fetcher(|options| {
        options.short_cut = false;
        options.stall = Duration::from_secs(2);
    });
    let got = fetcher.fetch(world.request(id(1), content.len() as u64, &[silent, good.holder()])).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), content);
    assert_eq!(fetcher.metrics().source_failures, 1);
}

#[test]
fn only_the_right_capability_opens() {
    let world = World::new();
    let peer = world.peer("a");
    let content = bytes(1000, 1);
    let object = peer.put(1, &content);
    let soon = now_ms() + 60_000;
    let foreign = ObjectKey::random().unwrap();
    for fetcher in [tcp_fetcher(), fetcher(|_| ())] {
        for (capability, code) in [
            (foreign.grant(object.into(), soon), Code::Denied),
            (world.cluster.grant(id(2).into(), soon), Code::Denied),
            (world.cluster.grant(object.into(), now_ms() - 1), Code::Expired),
            (world.cluster.grant_upload(Digest::of(&content), 1000, soon), Code::Denied),
        ] {
            let request = FetchRequest { capability, ..world.request(object, 1000, &[peer.holder()]) };
            let FetchError::Unavailable { sources, .. } = fetcher.fetch(request).wait().unwrap_err() else { panic!() };
            assert_eq!(sources[0].1, SourceError::Refused(code));
        }
        let missing = fetcher.fetch(world.request(id(9), 1000, &[peer.holder()])).wait().unwrap_err();
        assert!(missing.to_string().contains("does not have it"), "{missing}");
        // The key of before is good for what was on its way when it changed.
        peer.server.set_key(ObjectKey::random().unwrap());
        assert!(fetcher.fetch(world.request(object, 1000, &[peer.holder()])).wait().is_ok());
        peer.server.set_key(ObjectKey::random().unwrap());
        assert!(fetcher.fetch(world.request(object, 1000, &[peer.holder()])).wait().is_err());
        peer.server.set_key(world.cluster.clone());
    }
}

#[test]
fn a_thousand_connections_come_and_go_and_leave_nothing() {
    let world = World::new();
    let peer = world.peer("a");
    let object = peer.put(1, &bytes(MIB, 1));
    let capability = world.cluster.grant(object.into(), now_ms() + 60_000);
    for round in 0..1000 {
        let mut stream = TcpStream::connect(peer.server.address()).unwrap();
        let part = match round % 5 {
            0 => Vec::new(),
            1 => client_hello()[..7].to_vec(),
            2 => vec![b'x'; 100],
            3 => [client_hello(), frame(77, b"what")].concat(),
            // Asks and goes away in the middle of the answer.
            _ => [client_hello(), fetch_frame(object, &capability, MIB as u64)].concat(),
        };
        // The server may have closed already.
        drop(stream.write_all(&part));
    }
    eventually("all are gone", || peer.server.metrics().accepted >= 1000 && peer.server.metrics().connections == 0);
    let got = tcp_fetcher().fetch(world.request(object, MIB as u64, &[peer.holder()])).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), bytes(MIB, 1));
    eventually("nothing is in use", || peer.store.usage().pinned_bytes == 0);
}

#[test]
fn too_many_connections_are_told_so() {
    let world = World::new();
    let peer = world.peer_with("a", |options| options.connections_max = 3);
    let kept: Vec<_> = (0..3).map(|_| greeted(peer.server.address())).collect();
    assert!(kept.iter().all(|(_, code)| *code == 0));
    assert_eq!(greeted(peer.server.address()).1, Code::Busy as u16);
    drop(kept);
    eventually("there is room again", || peer.server.metrics().connections == 0);
    assert_eq!(greeted(peer.server.address()).1, 0);
}

#[test]
fn a_peer_that_does_not_read_holds_up_nobody_and_is_closed() {
    let world = World::new();
    let peer = world.peer_with("a", |options| {
        options.stall = Duration::from_millis(500);
        options.threads = 1;
    });
    let large = peer.put(1, &bytes(60 * MIB, 1));
    let small = peer.put(2, &bytes(1000, 2));
    let capability = world.cluster.grant(large.into(), now_ms() + 60_000);
    let (mut stuck, _) = greeted(peer.server.address());
    stuck.write_all(&fetch_frame(large, &capability, 60 << 20)).unwrap();
    eventually("it has begun", || peer.server.metrics().bytes_sent > 0);
    let fetcher = tcp_fetcher();
    let got = fetcher.fetch(world.request(small, 1000, &[peer.holder()])).wait().unwrap();
    assert_eq!(got.bytes().unwrap(), bytes(1000, 2));
    eventually("it is given up", || peer.store.usage().pinned_bytes == 0);
}

#[test]
fn malformed_requests_are_refused() {
    let world = World::new();
    let peer = world.peer("a");
    let object = peer.put(1, &bytes(1000, 1));
    let capability = world.cluster.grant(object.into(), now_ms() + 60_000);
    let (mut stream, _) = greeted(peer.server.address());
    // More than there is: the connection goes on.
    stream.write_all(&fetch_frame(object, &capability, 1001)).unwrap();
    assert_eq!(status(&mut stream), Code::Range as u16);
    stream.write_all(&fetch_frame(object, &capability, 999)).unwrap();
    assert_eq!(status(&mut stream), Code::Range as u16);
    // No uploads here.
    let put = [&[1][..], &[5; 32], &[0; 8], &[0; 32], &[0; 8]].concat();
    stream.write_all(&frame(2, &put)).unwrap();
    assert_eq!(status(&mut stream), Code::Denied as u16);
    // An open file over TCP.
    let mut share = fetch_frame(object, &capability, 0);
    share.truncate(share.len() - 16);
    share[0] -= 16;
    share[4] = 3;
    stream.write_all(&share).unwrap();
    assert_eq!(status(&mut stream), Code::NotShareable as u16);
    stream.write_all(&frame(1, &[0; 10])).unwrap();
    assert_eq!(status(&mut stream), Code::Malformed as u16);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "and that was the end");

    let mut stream = TcpStream::connect(peer.server.address()).unwrap();
    let mut hello = client_hello();
    hello[8..12].copy_from_slice(&[9, 0, 9, 0]);
    stream.write_all(&hello).unwrap();
    let mut answer = [0; 40];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!((answer[8], answer[10]), (1, Code::Version as u8), "what it speaks and why not");
}

#[test]
fn requests_are_bounded_and_given_up_with_their_futures() {
    let world = World::new();
    let silent = liar(vec![server_hello()], None, true);
    let fetcher = fetcher(|options| {
        options.short_cut = false;
        options.requests_max = 10;
        options.stall = Duration::from_millis(300);
    });
    let mut waiting: Vec<Fetch> =
        (0..10).map(|i| fetcher.fetch(world.request(id(i), 100, std::slice::from_ref(&silent)))).collect();
    let error = fetcher.fetch(world.request(id(10), 100, std::slice::from_ref(&silent))).wait().unwrap_err();
    assert_eq!(error, FetchError::TooMany(10));
    let last = waiting.pop().unwrap();
    drop(waiting);
    let error = last.wait().unwrap_err();
    assert!(matches!(error, FetchError::Unavailable { .. }), "{error}");
    eventually("all are over", || fetcher.metrics().pending == 0);
    let stopped = fetcher.fetch(world.request(id(1), 100, &[silent]));
    drop(fetcher);
    assert_eq!(stopped.wait().unwrap_err(), FetchError::Stopped);
}
